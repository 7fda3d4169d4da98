"""kill -9 and Ctrl-C anywhere in the quickstart: the same command goes on, and nobody can tell afterwards.

Points are reached by watching files appear. A run is killed at all of its points, one after the other, and every time
the same command goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.end_to_end.small import (
    SAVE_STEPS,
    STAGES,
    STEPS,
    STEPS_PER_ROLLOUT,
    Finished,
    Snapshot,
    Warm,
    alive,
    copy_run,
    environment,
    finished,
    folder,
    results,
    runner_pid,
    states,
    wait_until,
    weights,
    words,
    worker_pid,
)

pytestmark = pytest.mark.slow

LAST_SAVED = 2 * SAVE_STEPS  # the checkpoint before the one at the end


@dataclass(frozen=True)
class Point:
    """A moment of a stage.

    Attributes:
        reached: Whether the run in a folder has come to it.
        step: The step that the next run goes on from, at the least; None where no checkpoint is certain.
        committed: Whether the stage is done by then.
        alone: Whether the runner is a program with a server of its own, which then has to end with it.
    """

    stage: str
    what: str
    reached: Callable[[Path], bool]
    step: int | None = None
    committed: bool = False
    alone: bool = False


def _in(stage: str, what: str, name: str, step: int | None = None) -> Point:
    def reached(out: Path) -> bool:
        directory = folder(out, stage)
        return directory is not None and (directory / name).exists()

    return Point(stage, what, reached, step)


def starts(stage: str) -> Point:
    return _in(stage, "starts", "key.json")


def trains(stage: str, step: int) -> Point:
    def reached(out: Path) -> bool:
        directory = folder(out, stage)
        path = directory / "metrics.jsonl" if directory else out
        return path.is_file() and f'"step": {step},' in path.read_text()

    return Point(stage, f"has trained step {step}", reached)


def saves(stage: str, step: int) -> Point:
    before = step - (STEPS_PER_ROLLOUT if stage == "ppo" else SAVE_STEPS)
    return _in(stage, f"saves step {step}", f"checkpoints/tmp-{step}", before)


def saved(stage: str, step: int = LAST_SAVED) -> Point:
    return _in(stage, f"has saved step {step}", f"checkpoints/checkpoint-{step}", step)


def commits(stage: str, output: str) -> Point:
    return _in(stage, "commits", output, STEPS.get(stage))


def samples(policy: str) -> Point:
    def reached(out: Path) -> bool:
        log = out / "logs" / "eval.log"
        return log.is_file() and f"completions from {policy}" in log.read_text()

    return Point("eval", f"samples from {policy}", reached)


def collects(count: int) -> Point:
    """So many completions are in the ledger."""

    def reached(out: Path) -> bool:
        path = out / "ledger" / "ledger.sqlite3"
        if not path.exists():
            return False
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
            try:
                return int(ledger.execute("SELECT COUNT(*) FROM samples").fetchone()[0]) >= count
            except sqlite3.OperationalError:  # the tables are not there yet
                return False

    return Point("pairs", f"has collected {count} completions", reached)


def after(stage: str) -> Point:
    return Point(stage, "is done", (lambda out: (out / "stages" / stage / "current").exists()), committed=True)


def reports() -> Point:
    return Point("eval", "is in the report", lambda out: (out / "report").exists(), committed=True)


def reach(out: Path, point: Point, ended: Callable[[], bool]) -> int | None:
    """Waits for a point; returns the process of its stage, if there is one.

    Nothing of a stage is missed for looking less often while libraries are still imported.
    """
    come = wait_until(lambda: point.reached(out), ended, idle=lambda: worker_pid(out, point.stage) is None)
    assert come, f"{point.stage} {point.what} never came"
    return worker_pid(out, point.stage)


@dataclass
class Run:
    """A run that is killed again and again.

    Attributes:
        kept: What was finished at the last look; it must never change.
        late: Points that had passed when the kill came.
    """

    out: Path
    kept: Snapshot = field(default_factory=dict)
    late: list[Point] = field(default_factory=list)

    def look(self, point: Point) -> None:
        """After a kill at a point: nothing that was finished has changed."""
        self.require_kept(f"{point.stage} {point.what}")
        directory = folder(self.out, point.stage)
        assert directory is not None
        if not point.committed and (directory / "manifest.json").exists():
            self.late.append(point)

    def require_kept(self, when: str) -> None:
        now = finished(self.out)
        changed = [name for name, state in self.kept.items() if now.get(name) != state]
        assert changed == [], f"changed when killed where {when}"
        self.kept = now


def heard_resume(said: str, point: Point) -> None:
    """The run after a kill lost at most one save interval."""
    steps = re.findall(rf"{point.stage}: resuming from step (\d+)", said)
    assert steps and int(steps[0]) >= (point.step or 0), f"{point.stage} {point.what}: {said}"


def kill_runner(out: Path, points: Sequence[Point], warm: Warm) -> Run:
    """Kills the runner at every point; the last command is left alone."""
    run = Run(out)
    for number, point in enumerate(points):
        said, worker = (_kill_program if point.alone else _kill_command)(out, point, warm)
        # What the runner started ends by itself.
        wait_until(lambda pid=worker: pid is None or not alive(pid), seconds=10)
        run.look(point)
        if number and points[number - 1].step and points[number - 1] not in run.late:
            heard_resume(said, points[number - 1])
    done = warm.run(words(out))
    assert done.returncode == 0, done.stderr
    run.require_kept("the last run was left alone")
    return run


def _kill_command(out: Path, point: Point, warm: Warm) -> tuple[str, int | None]:
    warm.start(words(out))
    worker = reach(out, point, warm.has_ended)
    runner = runner_pid(out)
    assert runner is not None
    os.kill(runner, signal.SIGKILL)
    done = warm.result()
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stderr, worker


def _kill_program(out: Path, point: Point, warm: Warm) -> tuple[str, int | None]:
    with _program(out) as (process, said):
        worker = reach(out, point, lambda: process.poll() is not None)
        process.kill()
        assert process.wait() == -signal.SIGKILL, said.read_text()
    return said.read_text(), worker


@contextmanager
def _program(out: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command as a user starts it, in a process group of its own, and the file with what it says."""
    said = out.with_name("said")
    with said.open("w") as stream:
        command = [sys.executable, "-m", "prefopt", *words(out)]
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment(), start_new_session=True)
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def kill_worker(out: Path, points: Sequence[Point], warm: Warm) -> Run:
    """Kills the process of the stage at every point; the last command is left alone."""
    run = Run(out)
    for number, point in enumerate(points):
        warm.start(words(out))
        worker = reach(out, point, warm.has_ended)
        if worker is not None:
            os.kill(worker, signal.SIGKILL)
        done = warm.result()
        run.look(point)
        if point in run.late:
            continue
        assert done.returncode == 3, done.stderr
        assert f"the process of stage {point.stage} ended without a word (SIGKILL" in done.stderr
        assert states(done)[point.stage] == "failed"
        if number and points[number - 1].step and points[number - 1] not in run.late:
            heard_resume(done.stderr, points[number - 1])
    done = warm.run(words(out))
    assert done.returncode == 0, done.stderr
    run.require_kept("the last run was left alone")
    return run


OF_THE_RUNNER = (
    trains("base", 2),
    saves("base", LAST_SAVED),
    commits("base", "model/model.safetensors"),
    after("base"),
    saved("sft"),
    replace(commits("sft", "adapter/adapter_model.safetensors"), alone=True),
    collects(8),
    commits("pairs", "pairs.jsonl"),
    trains("reward", 2),
    commits("reward", "adapter/adapter_model.safetensors"),
    starts("dpo"),
    trains("dpo", 2),
    replace(saved("dpo"), alone=True),
    commits("dpo", "adapter/adapter_model.safetensors"),
    saves("ppo", 4),
    trains("ppo", 5),
    commits("ppo", "adapter/adapter_model.safetensors"),
    samples("dpo"),
    reports(),
)
# Where the worker of a stage is killed, the runner goes on with stages that do not need it. So reward and dpo, beside
# which others stand, are left to the kills of the runner.
OF_THE_WORKER = (
    starts("base"),
    trains("base", 4),
    saved("base"),
    commits("base", "model/model.safetensors"),
    starts("sft"),
    saves("sft", LAST_SAVED),
    commits("sft", "metrics.json"),
    starts("pairs"),
    collects(40),
    trains("ppo", 1),
    trains("ppo", 3),
    saved("ppo", 4),
    starts("eval"),
    samples("ppo"),
    commits("eval", "samples.jsonl"),
)


def test_a_killed_runner_changes_nothing_in_the_end(quickstart: Finished, out: Path, warm: Warm) -> None:
    out.parent.mkdir()
    run = kill_runner(out, OF_THE_RUNNER, warm)
    assert weights(out) == weights(quickstart.out)
    assert results(out) == results(quickstart.out)
    # A machine that is busy may let a point pass; most of them must have been hit.
    assert len(run.late) <= 3, run.late


def test_a_killed_worker_changes_nothing_in_the_end(quickstart: Finished, out: Path, warm: Warm) -> None:
    run = kill_worker(out, OF_THE_WORKER, warm)
    assert weights(out) == weights(quickstart.out)
    assert results(out) == results(quickstart.out)
    assert len(run.late) <= 3, run.late


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_serves(
    quickstart: Finished, out: Path, warm: Warm
) -> None:
    copy_run(quickstart.out, out, without=("dpo", "eval"))
    warm.start(words(out))
    worker = reach(out, saved("dpo"), warm.has_ended)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    assert warm.result().returncode == 3
    directory = folder(out, "dpo")
    assert directory is not None
    checkpoints = sorted(directory.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    newest, before = checkpoints[-1], checkpoints[-2]
    optimizer = newest / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    done = warm.run(words(out))
    assert done.returncode == 0, done.stderr
    assert f"{newest.name} is not used: {optimizer} has changed" in done.stderr
    assert f"dpo: resuming from step {before.name.split('-')[1]}" in done.stderr
    assert newest.with_name(f"{newest.name}.torn").is_dir()
    assert results(out) == results(quickstart.out)


def test_ctrl_c_saves_and_names_the_command_that_goes_on(quickstart: Finished, out: Path, warm: Warm) -> None:
    copy_run(quickstart.out, out, without=STAGES[1:])
    before = finished(out)
    with _program(out) as (process, said):
        worker = reach(out, trains("sft", 1), lambda: process.poll() is not None)
        assert worker is not None
        # The stage is held until the runner has heard, so that it cannot end before it is asked to.
        os.kill(worker, signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGINT)
        wait_until(lambda: "stopping: sft saves a checkpoint first" in said.read_text())
        os.kill(worker, signal.SIGCONT)
        assert process.wait(30) == 75
    text = said.read_text()
    stopped = re.search(r"error: stage sft stopped at step (\d+); a checkpoint was saved", text)
    assert stopped, text
    assert f"go on with: prefopt run {words(out)[1]} --set " in text and f"--out {out}" in text
    directory = folder(out, "sft")
    assert directory is not None and (directory / "checkpoints" / f"checkpoint-{stopped[1]}").is_dir()
    resumed = warm.run(words(out))
    assert resumed.returncode == 0, resumed.stderr
    assert f"sft: resuming from step {stopped[1]}" in resumed.stderr
    assert states(resumed) == {stage: "skipped" if stage == "base" else "done" for stage in STAGES}
    assert finished(out).items() >= before.items()
    assert results(out) == results(quickstart.out)
