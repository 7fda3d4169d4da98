"""The process of one stage: it verifies inputs, runs the stage's function, and commits the result.

It ends with the runner, however that ends, and never shares a stage's folder with another worker.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import importlib
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from prefopt.errors import EnvironmentFault, IntegrityError, PrefoptError, is_out_of_memory
from prefopt.pipeline import launch, loading
from prefopt.pipeline.context import StageContext, StageInput, StageResult, StopFlag
from prefopt.pipeline.keys import library_versions, save_key
from prefopt.pipeline.messages import Committed, Failed, InputRef, Job, Log, Message, Progress
from prefopt.pipeline.stages import stage_function
from prefopt.store import manifest as manifests
from prefopt.store.files import disk_fault, disk_faults, free_bytes, make_folder, read_json, remove, write_json
from prefopt.store.lock import exclusive
from prefopt.store.manifest import MEASUREMENTS, Manifest
from prefopt.store.secrets import redact

# What an uncommitted stage's folder keeps when the stage starts again; everything else is made again.
KEPT = ("checkpoints", "adapters", "members", "metrics.jsonl", "wandb", "wandb_run_id", "key.json", "spent.json")
SPENT = "spent.json"
# A worker whose runner was killed ends by itself; a new one waits this long for it.
LOCK_SECONDS = 15.0
BEAT_SECONDS = 15.0


def main(job: Job, connection: Connection) -> None:
    """Runs a job and reports over the connection. The target of the stage's process."""
    # A session of its own: Ctrl-C reaches the runner only, and all that the stage starts can be ended together.
    os.setsid()
    # What the server has imported is no garbage. A trainer collects garbage: half a second, and a copy of every page.
    gc.freeze()
    stop = _stop_on_signals()

    def send(message: Message) -> None:
        # A runner that is gone hears nothing, and this process is about to end as well.
        with contextlib.suppress(OSError):
            connection.send(message)

    try:
        _redirect_output(job.log_file)
    except EnvironmentFault as error:  # there is no log for it
        send(Failed(error, ""))
        return
    faulthandler.enable()
    os.environ.update(job.environment)
    loading.fix_environment(os.environ)
    if ranks_of(job) == 1:
        loading.show_one_device(os.environ)
    spent = _Spent(job.directory / SPENT)
    _end_with_runner(spent)

    try:
        for warning in loading.warnings():
            send(Log(warning))
        manifest = _run(job, stop, send, spent)
        send(Committed(manifest.sha256, manifest.metrics))
    except BaseException as error:
        text = redact(traceback.format_exc())
        print(text, file=sys.stderr)
        send(Failed(as_prefopt_error(error, job), text))
    finally:
        spent.save()
        sys.stdout.flush()
        sys.stderr.flush()


def _run(job: Job, stop: StopFlag, send: Callable[[Message], None], spent: _Spent) -> Manifest:
    def log(text: str) -> None:
        text = redact(text)
        print(text, flush=True)
        send(Log(text))

    def progress(step: int, total: int, metrics: Mapping[str, float]) -> None:
        send(Progress(step, total, {name: float(value) for name, value in metrics.items()}))

    with exclusive(job.lock_file, LOCK_SECONDS):
        finished = _finished(job)
        if finished is not None:
            return finished
        inputs = {name: _verified_input(name, ref) for name, ref in job.inputs.items()}
        make_folder(job.directory)
        _remove_leftovers(job.directory)
        save_key(job.directory, job.key)
        spent.begin()
        if ranks_of(job) > 1:
            result, spent.peaks = launch.run_ranks(job, inputs, stop, progress, log)
        else:
            seed_process(job)
            result = stage_function(job.module)(job.spec, inputs, stage_context(job, progress, log, stop))
        manifest = _commit(job, inputs, result, spent)
        spent.forget()
        return manifest


def stage_context(
    job: Job,
    progress: Callable[[int, int, Mapping[str, float]], None],
    log: Callable[[str], None],
    stop: StopFlag,
    rank: int = 0,
) -> StageContext:
    """What the stage's function is given around its options and inputs."""
    return StageContext(
        recipe=job.recipe,
        stage=job.stage,
        kind=job.spec.kind,
        key=job.key.digest,
        directory=job.directory,
        seed=job.seed,
        run_name=job.run_name,
        cache=job.cache,
        ledger=job.ledger,
        allow_inexact_resume=job.allow_inexact_resume,
        trust_remote_code=job.trust_remote_code,
        progress=progress,
        log=log,
        stop=stop,
        rank=rank,
    )


def ranks_of(job: Job) -> int:
    """How many processes run the stage together."""
    return int(getattr(job.spec, "ranks", 1))


def _finished(job: Job) -> Manifest | None:
    """The manifest, when a worker whose runner was killed committed the stage while this one waited for the lock."""
    if not (job.directory / manifests.MANIFEST).exists():
        return None
    return manifests.verify(job.directory, full=True)


def _verified_input(name: str, ref: InputRef) -> StageInput:
    try:
        manifest = manifests.verify(ref.directory, full=True)
    except IntegrityError as error:
        raise IntegrityError(f"input {name}: {error.message}", f"make it again: run with --from {name}") from error
    if manifest.sha256 != ref.sha256:
        raise IntegrityError(f"input {name}: {ref.directory} was replaced while the run was going on", "run again")
    return StageInput(name, manifest.kind, ref.directory, manifest)


def _remove_leftovers(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name not in KEPT:
            remove(entry)


def _commit(job: Job, inputs: Mapping[str, StageInput], result: StageResult, spent: _Spent) -> Manifest:
    outputs = dict.fromkeys(result.outputs)
    if "metrics.json" not in outputs:
        finite = {name: value for name, value in result.metrics.items() if math.isfinite(value)}
        write_json(job.directory / "metrics.json", finite)
    outputs.update(dict.fromkeys(name for name in MEASUREMENTS if (job.directory / name).exists()))
    return manifests.commit(
        job.directory,
        Manifest(
            stage=job.stage,
            kind=job.spec.kind,
            key=job.key.digest,
            seed=job.seed,
            inputs={
                name: {"key": stage.manifest.key, "sha256": stage.manifest.sha256} for name, stage in inputs.items()
            },
            versions=library_versions(),
            metrics=result.metrics,
            cost={**result.cost, **spent.cost()},
            details=result.details,
        ),
        list(outputs),
    )


class _Spent:
    """Wall time and memory of a stage, summed over all attempts, so that a resumed stage shows its whole price.

    Attributes:
        peaks: Of the processes that did the work, where it was not this one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.peaks: dict[str, float] = {}
        self._before = 0.0
        self._start: float | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Start counting, on top of what earlier attempts noted."""
        # A torn or missing note costs only the seconds it held.
        with contextlib.suppress(IntegrityError, KeyError, TypeError, ValueError):
            self._before = float(read_json(self._path)["wall_seconds"])
        self._start = time.monotonic()

    def cost(self) -> dict[str, float]:
        """Wall seconds of all attempts; peak bytes of this one.

        The host's peak starts at what the process shared with its server when it was forked, libraries included; the
        kernel cannot set it back. Children that have ended are not counted.
        """
        return {"wall_seconds": self._wall_seconds(), **(self.peaks or peak_bytes())}

    def save(self) -> None:
        """Note what was spent until now."""
        with self._lock:
            # A disk that is full makes the stage fail where that matters; a note of the time is not worth it.
            if self._start is not None and self._path.parent.is_dir():
                with contextlib.suppress(EnvironmentFault):
                    write_json(self._path, {"wall_seconds": self._wall_seconds()})

    def forget(self) -> None:
        """Remove the note: the manifest has it now."""
        with self._lock:
            self._start = None
            remove(self._path)

    def _wall_seconds(self) -> float:
        return round(self._before + (time.monotonic() - self._start if self._start is not None else 0.0), 3)


def peak_bytes() -> dict[str, float]:
    """The most memory that this process has held, on the host and on its device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_host_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks["peak_device_bytes"] = float(torch.cuda.max_memory_allocated())
    return peaks


def _stop_on_signals() -> StopFlag:
    stop = StopFlag()

    owner = os.getpid()

    def ask(number: int, frame: object) -> None:
        if os.getpid() == owner:
            stop.set()
            return
        # Data loaders and pools that the stage forked are ended by signals: they must not only take note of them.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop


def _redirect_output(log_file: Path) -> None:
    make_folder(log_file.parent)
    with disk_faults(log_file):
        descriptor = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        setattr(sys, name, stream)


def _end_with_runner(spent: _Spent) -> None:
    runner = multiprocessing.parent_process()

    def watch() -> None:
        # The runner holds the other end of this pipe, so it closes with the runner, however that ends.
        while runner is not None and not wait([runner.sentinel], BEAT_SECONDS):
            spent.save()
        os.killpg(0, signal.SIGKILL)

    if runner is not None:
        threading.Thread(target=watch, name="runner-watch", daemon=True).start()


def seed_process(job: Job) -> None:
    """Seed everything random, and make torch deterministic where that is cheap."""
    random.seed(job.seed)
    if not job.uses_torch:
        return
    # By name, as the runner's side of this package must not depend on them.
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    loading.prepare_torch()
    torch.manual_seed(job.seed)
    transformers.set_seed(job.seed)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling every new tensor with NaN makes training of small models 2.4 times slower, and proves nothing here.
        torch.utils.deterministic.fill_uninitialized_memory = False


_FULL = ("No space left on device", "os error 28")
# What libraries that write in C++ say of any failure to write, and the room below which there is one cause.
_UNWRITTEN = ("PytorchStreamWriter failed writing", "iostream error", "unexpected pos", "os error 27", "File too large")
_NO_ROOM_BYTES = 16 << 20


def as_prefopt_error(error: BaseException, job: Job) -> PrefoptError:
    """An error that a user can act on, from anything a stage may raise."""
    if isinstance(error, PrefoptError):
        return error
    name = type(error).__name__
    if (fault := _disk_error(error, job)) is not None:
        return disk_fault(fault, Path(str(getattr(error, "filename", None) or job.directory)))
    if is_out_of_memory(error):
        return EnvironmentFault(
            f"stage {job.stage} ran out of memory: {_first_line(error)}",
            "lower the batch sizes (per_device_train_batch_size with gradient_accumulation_steps raised to match) or "
            "max_length, or set activation_checkpointing: true",
        )
    return PrefoptError(f"stage {job.stage} failed: {name}: {_first_line(error)}", f"see {job.log_file}")


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def _disk_error(error: BaseException, job: Job) -> OSError | None:
    """The error of the operating system that an error stands for, where it is one of the disk."""
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return error
    if any(text in str(error) for text in _FULL):
        return OSError(errno.ENOSPC, "")
    if any(text in str(error) for text in _UNWRITTEN):
        return OSError(errno.ENOSPC if free_bytes(job.directory) < _NO_ROOM_BYTES else errno.EFBIG, "")
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
