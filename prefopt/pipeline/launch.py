"""A stage on several processes: `accelerate launch` starts them, and this process hears them, stops them, and judges.

The ranks run the stage's function together (`prefopt.pipeline.rank`); the first alone writes, logs and measures. This
process holds the stage's lock and commits what they made. All of them hang on a socket of its own: when it closes,
however that came, they end.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import EnvironmentFault, InputError, PrefoptError
from prefopt.pipeline import loading
from prefopt.pipeline.context import Inputs, StageInput, StageResult, StopFlag
from prefopt.pipeline.messages import Failed, Job, Log, Progress
from prefopt.recipe.bundled import recipes_folder
from prefopt.recipe.schema import AccelerateSpec, OptimisationSpec
from prefopt.store.files import disk_faults

RANK_MODULE = "prefopt.pipeline.rank"
RANK_KEY = "PREFOPT_RANK_KEY"
POLL_SECONDS = 0.2
_NO_PRECISION = ("no", None)


@dataclass(frozen=True)
class RankJob:
    """What a rank is told to do."""

    job: Job
    inputs: dict[str, StageInput]


@dataclass(frozen=True)
class RankDone:
    """What a rank says at its end.

    Attributes:
        result: Of the first rank; None of the others.
        peaks: Most bytes held, on host and device.
    """

    result: StageResult | None
    peaks: dict[str, float]


@dataclass(frozen=True)
class RankEnded:
    """What a rank says that is ended because of another one."""


def run_ranks(
    job: Job,
    inputs: Inputs,
    stop: StopFlag,
    progress: Callable[[int, int, Mapping[str, float]], None],
    log: Callable[[str], None],
) -> tuple[StageResult, dict[str, float]]:
    """Run a stage's function on as many processes as its spec asks for.

    Args:
        job: The stage.
        inputs: Verified.
        stop: Once it is set, the ranks are asked to save and end.
        progress: Hears the first rank's progress.
        log: Hears its lines.

    Returns:
        What the first rank answered, and the most bytes held: of all ranks together on the host, of one on a device.

    Raises:
        InputError: When the configuration of accelerate asks for what a stage cannot have.
        EnvironmentFault: When the ranks cannot be started, or one ends without a word.
        PrefoptError: Whatever a rank raised first.
    """
    assert isinstance(job.spec, OptimisationSpec)  # no other stage asks for several processes
    count = job.spec.ranks
    key = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="prefopt-") as folder:
        address = str(Path(folder) / "ranks")
        command, environment = launch_command(job.stage, job.spec.accelerate, address)
        log(f"{count} processes by accelerate launch")
        with Listener(address, authkey=bytes.fromhex(key)) as listener:
            process = subprocess.Popen(command, env={**environment, RANK_KEY: key}, stdin=subprocess.DEVNULL)
            hub = _Hub(RankJob(job, dict(inputs)), progress, log)
            threading.Thread(target=hub.accept, args=(listener,), name="ranks", daemon=True).start()
            try:
                hub.hear(process, stop)
            finally:
                hub.close()
                process.terminate()
                process.wait()
    return hub.outcome(job, count, process.returncode)


def launch_command(stage: str, accelerate: AccelerateSpec, address: str) -> tuple[list[str], dict[str, str]]:
    """The command that starts the ranks, and its environment.

    Args:
        stage: Name of the stage.
        accelerate: What it asks for.
        address: Of the socket that the ranks call.

    Raises:
        InputError: For a configuration with a precision of its own, or of several machines.
        EnvironmentFault: When there is no configuration, or there are too few devices.
    """
    count, devices = accelerate.num_processes, _devices()
    config = (
        Path(accelerate.config_file) if accelerate.config_file else _bundled("ddp.yaml" if devices else "ddp_cpu.yaml")
    )
    settings = read_config(config)
    on_cpu = bool(settings.get("use_cpu"))
    if not on_cpu and devices < count:
        raise EnvironmentFault(
            f"stage {stage} asks for {count} processes, and this machine has {devices} CUDA devices",
            "lower accelerate.num_processes, or choose a config_file with `use_cpu: true`",
        )
    threads = max(1, loading.threads() // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PREFOPT_THREADS": str(threads)}
    environment["PYTHONHASHSEED"] = "0"
    if on_cpu:
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", str(count), "--main_process_port", "0", "--module", RANK_MODULE, address]
    return command, environment


def read_config(path: Path) -> dict[str, Any]:
    """What a configuration of accelerate says.

    Raises:
        InputError: When it cannot be read, or asks for what a stage cannot have.
    """
    with disk_faults(path):
        text = path.read_text(encoding="utf-8")
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds no configuration of accelerate", "write one with `accelerate config`")
    if settings.get("mixed_precision") not in _NO_PRECISION and settings.get("mixed_precision") is not False:
        raise InputError(
            f"{path}: mixed_precision is {settings['mixed_precision']!r}, and precision is a matter of `model.dtype`",
            "write mixed_precision: 'no'",
        )
    if int(settings.get("num_machines") or 1) > 1:
        raise InputError(f"{path}: num_machines is {settings['num_machines']}, and a stage runs on one machine")
    return settings


def _devices() -> int:
    torch: Any = importlib.import_module("torch")  # by name: the runner's side must not depend on it
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _bundled(name: str) -> Path:
    folder = recipes_folder()
    if folder is None or not (folder / "accelerate" / name).is_file():
        raise EnvironmentFault(f"this installation has no accelerate/{name}", "give config_file, or reinstall prefopt")
    return folder / "accelerate" / name


class _Hub:
    """Hears all ranks.

    Args:
        job: What each is told as soon as it calls.
        progress: Hears the first rank's progress.
        log: Hears its lines.
    """

    def __init__(
        self,
        job: RankJob,
        progress: Callable[[int, int, Mapping[str, float]], None],
        log: Callable[[str], None],
    ) -> None:
        self._job = job
        self._progress = progress
        self._log = log
        self._calls: list[Connection[Any, Any]] = []
        self._finished: list[RankDone] = []
        self._failed: list[Failed] = []
        self._died = False
        self._over: set[Connection[Any, Any]] = set()
        self._told = False

    def accept(self, listener: Listener) -> None:
        """Take calls until the listener closes."""
        while True:
            try:
                call: Any = listener.accept()
            except (AuthenticationError, EOFError):
                continue  # not one of ours
            except OSError:
                return
            call.send(self._job)
            self._calls.append(call)

    def hear(self, process: subprocess.Popen[bytes], stop: StopFlag) -> None:
        """Listen until the ranks have ended."""
        while True:
            ended = process.poll() is not None
            waiting = [call for call in self._calls if call not in self._over]
            if stop() and not self._told and waiting:
                self._told = True
                for call in waiting:
                    with contextlib.suppress(OSError):
                        call.send("stop")
            ready: list[Any] = wait(waiting, POLL_SECONDS) if waiting else []
            for call in ready:
                self._take(call)
            if ended and not ready:
                return
            if not waiting:
                time.sleep(POLL_SECONDS)

    def _take(self, call: Any) -> None:
        try:
            message = call.recv()
        except (EOFError, OSError):
            self._over.add(call)
            self._died = True
            return
        if isinstance(message, Progress):
            self._progress(message.step, message.total, message.metrics)
        elif isinstance(message, Log):
            self._log(message.text)
        else:
            self._over.add(call)
            if isinstance(message, Failed):
                self._failed.append(message)
            elif isinstance(message, RankDone):
                self._finished.append(message)

    def outcome(self, job: Job, count: int, returncode: int) -> tuple[StageResult, dict[str, float]]:
        """What came of it; see `run_ranks`."""
        # Where a rank has died, the others fail as well, each in its library's words.
        foreseen = [failed for failed in self._failed if type(failed.error) is not PrefoptError]
        told = foreseen or ([] if self._died else self._failed)
        if told:
            told[0].error.add_note(told[0].traceback)
            raise told[0].error
        again = f"run again to go on from its last checkpoint; their output is in {job.log_file}"
        if self._died:
            raise EnvironmentFault(
                f"one of the {count} processes of stage {job.stage} ended without a word, as when the system kills it "
                "because memory runs out; the others were ended",
                again,
            )
        result = next((done.result for done in self._finished if done.result is not None), None)
        if result is None or len(self._finished) < count:
            raise EnvironmentFault(
                f"accelerate launch ended with code {returncode}, and {len(self._finished)} of {count} processes of "
                f"stage {job.stage} were done",
                again,
            )
        return result, _together([done.peaks for done in self._finished])

    def close(self) -> None:
        """Hang up: a rank that is still there ends."""
        for call in self._calls:
            call.close()


def _together(peaks: list[dict[str, float]]) -> dict[str, float]:
    found = {"peak_host_bytes": sum(each["peak_host_bytes"] for each in peaks)}
    devices = [each["peak_device_bytes"] for each in peaks if "peak_device_bytes" in each]
    return {**found, "peak_device_bytes": max(devices)} if devices else found
