"""A stage without a model: a chain of hashes stands for training. What it should do wrong is in a file."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from prefopt.errors import Interrupted, TrainingDiverged
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.store.checkpoints import commit_checkpoint, newest_verified, rotate

STEPS = 6


def behaviour(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(os.environ["FAKE_BEHAVIOUR"]).read_text()).get(stage, {})
    return found


def note(line: str) -> None:
    with open(os.environ["FAKE_LOG"], "a") as file:
        file.write(line + "\n")


def run(spec: Any, inputs: Inputs, context: StageContext) -> StageResult:
    wanted = behaviour(context.stage)
    if context.rank > 0:
        if "other_rank" in wanted:
            MISBEHAVIOUR[wanted["other_rank"]](context)
        return StageResult({}, [])
    note(f"{context.stage} start {os.getpid()}")
    start = sorted((name, stage.manifest.sha256) for name, stage in inputs.items())
    state = hashlib.sha256(repr((start, context.seed, getattr(spec, "learning_rate", 0))).encode()).hexdigest()
    folder = context.directory / "checkpoints"
    first = 0
    if (checkpoint := newest_verified(folder, context.log)) is not None:
        first = int(checkpoint.name.rsplit("-", 1)[1])
        state = (checkpoint / "state").read_text()
    for step in range(first + 1, STEPS + 1):
        _misbehave(wanted, step, context)
        state = hashlib.sha256(f"{state}{step}".encode()).hexdigest()
        note(f"{context.stage} step {step}")
        _save(folder, step, state)
        context.progress(step, STEPS, {"train/loss": 1.0 / step})
        with (context.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), "train/loss": 1.0 / step}) + "\n")
        if context.stop() and not wanted.get("deaf"):
            raise Interrupted(f"stage {context.stage} stopped at step {step}; a checkpoint was saved")
    (context.directory / "adapter").mkdir()
    (context.directory / "adapter" / "weights").write_text(state)
    _misbehave(wanted, "end", context)
    return StageResult({"train/loss": float(wanted.get("loss", 0.25))}, ["adapter"], {"note": "fake"}, {"tokens": 7.0})


def _save(folder: Path, step: int, state: str) -> None:
    temporary = folder / f"tmp-{step}"
    temporary.mkdir(parents=True, exist_ok=True)
    (temporary / "state").write_text(state)
    commit_checkpoint(temporary, folder / f"checkpoint-{step}", step, {})
    rotate(folder, 2, set())


def _misbehave(wanted: dict[str, Any], when: object, context: StageContext) -> None:
    if wanted.get("sleep"):
        time.sleep(wanted["sleep"])
    if wanted.get("when") == when:
        MISBEHAVIOUR[wanted["what"]](context)


def _kill(context: StageContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _diverge(context: StageContext) -> None:
    raise TrainingDiverged("loss is nan", "lower learning_rate")


def _bug(context: StageContext) -> None:
    raise ZeroDivisionError("a bug")


def _full(context: StageContext) -> None:
    raise RuntimeError("Error while serializing: No space left on device (os error 28)")


def _wait(context: StageContext) -> None:
    raise Interrupted("waiting for people")


def _hang(context: StageContext) -> None:
    note(f"{context.stage} hangs {os.getpid()}")
    time.sleep(60)


def _orphan(context: StageContext) -> None:
    note(f"{context.stage} orphan {_fork_sleeper()}")
    os.kill(os.getpid(), signal.SIGKILL)


def _pool(context: StageContext) -> None:
    child = _fork_sleeper()
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    note(f"{context.stage} child ended by {os.WTERMSIG(status)}")


MISBEHAVIOUR = {
    "kill": _kill,
    "diverge": _diverge,
    "bug": _bug,
    "full": _full,
    "wait": _wait,
    "hang": _hang,
    "orphan": _orphan,
    "pool": _pool,
}


def _fork_sleeper() -> int:
    """A child such as a data loader: nobody but a signal ends it soon."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    return child
