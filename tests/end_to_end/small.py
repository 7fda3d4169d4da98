"""The bundled quickstart made small, and the ways a person runs it, looks at it, and kills it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.store import manifest as manifests
from prefopt.store.files import sha256_file

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
STAGES = ("base", "sft", "pairs", "reward", "checks", "dpo", "ppo", "eval")
STEPS = {"base": 8, "sft": 7, "reward": 7, "dpo": 7}
SAVE_STEPS = 3
ROLLOUTS, STEPS_PER_ROLLOUT = 3, 2
SMALL = (
    *(f"data.{name}.max_samples=120" for name in ("conversations", "demonstrations")),
    "data.prompts.max_samples=60",
    *(f"stages.base.{key}" for key in ("vocab_size=320", "hidden_size=32", "intermediate_size=32")),
    *("stages.base.num_hidden_layers=1", "stages.base.warmup_steps=0"),
    *(f"stages.{stage}.max_steps={steps}" for stage, steps in STEPS.items()),
    *(f"stages.{stage}.save_steps={SAVE_STEPS}" for stage in STEPS),
    *(f"stages.{stage}.logging_steps=1" for stage in STEPS),
    *(f"stages.{stage}.per_device_train_batch_size=4" for stage in STEPS),
    *("stages.pairs.samples_per_prompt=2", "stages.pairs.judge.noise=0.1", "stages.pairs.max_new_tokens=8"),
    *("stages.pairs.per_device_eval_batch_size=8", "stages.ppo.max_new_tokens=8", "stages.ppo.logging_steps=1"),
    *(f"stages.ppo.{key}" for key in ("rollout_batch_size=8", "num_ppo_epochs=2", "per_device_train_batch_size=4")),
    *(f"stages.ppo.{key}" for key in (f"total_episodes={8 * ROLLOUTS}", "save_steps=1")),
    *("stages.eval.max_prompts=6", "stages.eval.best_of=4", "stages.eval.best_of_prompts=4"),
    *("stages.eval.samples_per_prompt=1", "stages.eval.max_new_tokens=8"),
    # Nothing so small comes through the gates.
    *(f"stages.{stage}.require={{}}" for stage in ("sft", "reward", "checks", "eval")),
)
Snapshot = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Finished:
    """A run that has ended: its folder and what the command said."""

    out: Path
    done: subprocess.CompletedProcess[str]


def words(out: Path, *more: str, recipe: Path = QUICKSTART) -> list[str]:
    """The command line of the small quickstart, without the program."""
    overrides = [word for setting in SMALL for word in ("--set", setting)]
    return ["run", str(recipe), "--out", str(out), *overrides, *more]


def environment(**more: str) -> dict[str, str]:
    """One thread: the tests compare bits, and run two at a time on two cores."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PREFOPT_THREADS": "1", **more}


def prefopt(*line: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a process of its own, as a user does."""
    command = [sys.executable, "-m", "prefopt", *map(str, line)]
    settings = {"capture_output": True, "text": True, "timeout": 600, "env": env or environment(), **options}
    return subprocess.run(command, **settings)


class Warm:
    """Runs command lines one after the other, each in a process of its own, with one warm server of stage processes.

    The same commands, without the seconds that importing the libraries takes each time.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py")), str(folder / "server.log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self._count = 0
        self._running = False

    def start(self, line: list[str], **variables: str) -> None:
        """Starts a command; `result` waits for it."""
        assert self._process.stdin is not None
        if self._running:  # a test failed before it asked for the result
            self.result()
        self._count += 1
        self._running = True
        request = {"line": line, "outputs": [str(path) for path in self._outputs()], "variables": variables}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def result(self) -> subprocess.CompletedProcess[str]:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the program that runs the commands has ended"
        self._running = False
        out, err = (path.read_text() for path in self._outputs())
        return subprocess.CompletedProcess([], int(answer), out, err)

    def has_ended(self) -> bool:
        """Whether the command that was started has come to its end."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def run(self, line: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        self.start(line, **variables)
        return self.result()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def _outputs(self) -> tuple[Path, Path]:
        return self._folder / f"{self._count}.out", self._folder / f"{self._count}.err"


# -- what lies in a run folder -------------------------------------------------------------------------------------


def folder(out: Path, stage: str) -> Path | None:
    """Where a stage writes, or wrote, or found what another seed wrote; None before any of that."""
    for name in ("started", "current"):
        pointer = out / "stages" / stage / name
        if pointer.is_file():
            return pointer.with_name(pointer.read_text().strip())
    return None


def snapshot(*roots: Path, without: tuple[str, ...] = ()) -> Snapshot:
    """Time of last change and hash of every file."""
    files = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file() and path.name not in without]
    return {str(path): (path.stat().st_mtime_ns, sha256_file(path)) for path in files}


def finished(out: Path) -> Snapshot:
    """A snapshot of the artefacts that are committed."""
    return snapshot(*(path.parent for path in out.glob(f"stages/*/*/{manifests.MANIFEST}")))


def results(out: Path) -> dict[str, str]:
    """What every stage came to: the hash over its outputs, weights and samples among them."""
    found = {}
    for stage in STAGES:
        directory = folder(out, stage)
        assert directory is not None
        found[stage] = manifests.verify(directory, full=True).sha256
    return found


def weights(out: Path) -> dict[str, str]:
    """sha256 of the model and of the final adapters."""
    adapter = "adapter/adapter_model.safetensors"
    files = {"base": "model/model.safetensors", **dict.fromkeys(("sft", "reward", "dpo", "ppo"), adapter)}
    found = {}
    for stage, name in files.items():
        directory = folder(out, stage)
        assert directory is not None
        found[stage] = sha256_file(directory / name)
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def copy_run(run: Path, to: Path, without: tuple[str, ...] = ()) -> Path:
    """A copy of a run folder as it was before some stages ran."""
    shutil.copytree(run, to)
    for stage in without:
        shutil.rmtree(to / "stages" / stage)
        (to / "logs" / f"{stage}.log").unlink()
    if without:
        shutil.rmtree(to / "report")
    return to


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The states in the table of stages that `run` and `status` print first."""
    table, _, _ = done.stdout.partition("\n\n")
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: row[2] for row in rows if len(row) > 2 and row[0] in STAGES}


# -- watching ------------------------------------------------------------------------------------------------------


def wait_until(
    condition: Callable[[], object],
    ended: Callable[[], bool] = lambda: False,
    *,
    idle: Callable[[], bool] = lambda: False,
    seconds: float = 300,
) -> bool:
    """Waits for a condition, looking every millisecond, and less often where it is idle to.

    Returns:
        False when `ended` says that it will not come any more.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if ended():
            return bool(condition())
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.01 if idle() else 0.001)
    return True


def holder(note: Path) -> int | None:
    """The process that holds a lock, as the note beside the lock says."""
    try:
        return int(json.loads(note.read_text())["pid"])
    except FileNotFoundError:
        return None


def runner_pid(out: Path) -> int | None:
    """The process that runs a recipe now."""
    return holder(out / "lock.json")


def worker_pid(out: Path, stage: str) -> int | None:
    """The process that writes a stage now."""
    return holder(out / "stages" / stage / ".lock.json")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
