"""How much memory a trainer's first step takes, counted tensor by tensor, and the resident memory of this process.

On a CPU every tensor that an operator makes is counted from the moment it is made until it is freed; on CUDA the
allocator counts. Nothing is sampled, so a small step tells exactly what its rows need, and steps of one and of two rows
tell what any number of rows needs: peaks grow linearly with the rows of a pass.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from prefopt.models.host_memory import keep_large_blocks


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators make while it is active; views and what is written in place make none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = {key: storage for key, storage in _storages(out).items() if key not in self._live}
        if made:
            given = _storages((args, kwargs))
            for key, storage in made.items():
                if key not in given:
                    self._add(key, storage)
        return out

    def _add(self, key: int, storage: Any) -> None:
        size = storage.nbytes()

        def freed(_: object) -> None:
            if self._live.pop(key, None) is not None:
                self.now -= size

        self._live[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: object) -> dict[int, Any]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}


class PeakBytes:
    """Most bytes that tensors took at once, above what they took at the start.

    Args:
        device: Where the tensors are; on a CPU other devices' are counted as well.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mode: _LiveBytes | None = None
        self._level = 0

    def start(self) -> None:
        """Begin to count."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._level = torch.cuda.memory_allocated(self._device)
            return
        self._mode = _LiveBytes()
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def restart(self) -> None:
        """Forget the peak until now, and not the level."""
        if self._mode is not None:
            self._mode.peak = self._mode.now
        elif self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    @property
    def peak(self) -> int:
        """Bytes."""
        if self._mode is not None:
            return self._mode.peak
        return int(torch.cuda.max_memory_allocated(self._device) - self._level)

    def stop(self) -> int:
        """Count no more; the peak."""
        peak = self.peak
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return peak


class FirstStep(TrainerCallback):  # type: ignore[misc]
    """Looks at the first optimiser step of a trainer: whether the right weights get gradients, and its peak of memory.

    Args:
        model: What is trained, as the trainer holds it.
        device: Of the model.
        count: Whether memory is counted; on a CPU counting makes the step slower.

    Attributes:
        sampling: Peak bytes of what happens in the step before its first pass through `model` as a whole: of PPO,
            sampling and scoring.
        judging: Peak bytes from there to the first pass with gradients: of PPO, what the roles say of the samples.
        update: Peak bytes from that pass to the end of the last backward pass, gradients included.
        untrained: Weights that are to be trained and got no gradient, or one that is not finite.
        leaking: Frozen weights that got a gradient.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, count: bool) -> None:
        self.sampling = self.judging = self.update = 0
        self.untrained: list[str] = []
        self.leaking: list[str] = []
        self._model = model
        self._peak = PeakBytes(device) if count else None
        self._hook = model.register_forward_pre_hook(self._forward)
        self._counting = self._judging = self._updating = self._done = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        if not self._done and self._peak is not None:
            self._peak.start()
            self._counting = True

    def _forward(self, module: nn.Module, given: object) -> None:
        if self._peak is None or self._updating:
            return
        if torch.is_grad_enabled():
            self.judging = self._peak.peak if self._judging else 0
            self._updating = True
        elif not self._judging and self._counting:
            self.sampling = self._peak.peak
            self._judging = True
        else:
            return
        self._peak.restart()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients; the rest of the training is none of this callback's concern."""
        if self._done:
            return
        self._done = True
        self._hook.remove()
        if self._peak is not None:
            self.update = self._peak.stop()
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and (parameter.grad is None or not bool(torch.isfinite(parameter.grad).all())):
                self.untrained.append(name)
            elif not parameter.requires_grad and parameter.grad is not None:
                self.leaking.append(name)


class KeepFreedBlocks(TrainerCallback):  # type: ignore[misc]
    """Lets the C library keep freed blocks for the next ones, while the machine has room for what that leaves unused.

    Until the first step is over a wide model's blocks are returned (`return_large_blocks`), so its peak is what tensors
    need. Where thrice that fits, they are kept from then on, which is quicker: see docs/memory.md. When most of the
    room is taken all the same, by this process or by others, they are returned again, for good.

    Args:
        log: Takes a line when that changes.
    """

    MOST = 3
    """Times what tensors need that was seen to be resident with blocks kept, at most."""

    def __init__(self, log: Callable[[str], None] = lambda line: None) -> None:
        self._log = log
        self._keeping: bool | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin as the process did, after another training of it as well."""
        keep_large_blocks(False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide after the first step; watch from then on."""
        if self._keeping is False:
            return
        room = available_bytes(torch.device("cpu"))
        # Other ranks are on this machine as well, and as large.
        if room is None:
            self._keeping = False
        elif self._keeping is None:
            self._keeping = self.MOST * args.world_size * _status_bytes("VmHWM") <= room and keep_large_blocks(True)
            if self._keeping:
                self._log(f"there is room ({room / 2**30:.1f} GiB): freed memory is kept for what comes next")
        elif args.world_size * _status_bytes("VmRSS") > room / 2:
            self._keeping = False
            keep_large_blocks(False)
            release()
            self._log("memory is scarce now: what is freed is given back at once")


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers; shared ones count once."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(storage.nbytes() for storage in _storages(tensors).values())


def trained_bytes(model: nn.Module) -> int:
    """Bytes of the parameters that are trained."""
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


# -- this process ------------------------------------------------------------------------------------------------------


def release() -> None:
    """Give memory that is not used any more back to the system, as far as it can be."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library has it
        if trim is not None:
            trim(0)


class ProcessPeak:
    """Peak memory of this process from now on: of its CUDA device, or resident on the host.

    Args:
        device: Decides which.

    Attributes:
        level: Bytes at the start.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        release()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.level = int(torch.cuda.memory_allocated(device))
        else:
            _reset_high_water()
            self.level = _status_bytes("VmRSS")

    def peak(self) -> int | None:
        """Most bytes since the start, with those at the start; None where the system does not say (not on Linux)."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return _status_bytes("VmHWM") or None


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process may have in all, what it has already included; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    found = int(lines["MemAvailable"].split()[0]) * 1024 + _status_bytes("VmRSS")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(found, int(text)) if text.isdigit() else found


def _reset_high_water() -> None:
    """Linux: the peak begins anew at what is resident now."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
