"""kill -9 at every file operation of a training run that saves: the same command ends with the same bits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from prefopt.store.checkpoints import checkpoints
from prefopt.trainers import checkpoints as mixin
from prefopt.trainers.checkpoints import CheckpointedTrainer
from tests.faults.conftest import Count
from tests.faults.injection import Operation, forked, kill, operations, some, struck
from tests.faults.trained import KINDS, SAVED, train
from tests.unit.trainers.four import METHODS

FEW = 2
# Whose saves are those of another kind.
FEWER = {"grpo": 30, "rloo": 15, "kto": 30, "distill": 30}


def committed(before: Sequence[Operation]) -> int:
    """The step of the newest checkpoint that was renamed into its place by these operations."""
    steps = [int(found[1]) for each in before if (found := re.search(r"/checkpoint-(\d+)$", each.to))]
    return max(steps, default=0)


def sweep(kind: str, folder: Path, few: int | None, action: Callable[[str, Path], dict] = train) -> int:
    """Kills a run at its operations and runs it again; the number of kills."""
    found, whole = operations(folder, lambda: action(kind, folder / "run"))
    assert whole["from"] == 0 and whole["step"] == SAVED[kind][-1]
    shutil.rmtree(folder / "run")
    points = some(len(found), few)
    out = folder / "run"
    for number in points:
        ended = struck(out, number, kill, lambda: action(kind, out))
        assert ended.killed, f"{found[number]} was not reached: {ended.error}"
        again = forked(lambda: action(kind, out), folder / "said")
        where = f"{kind}, killed at {number}: {found[number]}"
        assert not again.error, f"{where}\n{again.error}"
        assert again.value["sha256"] == whole["sha256"], where
        assert again.value["from"] >= committed(found[:number]), where
        shutil.rmtree(out)
    return len(points)


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_t01_a_run_killed_at_some_operations_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    assert sweep(kind, tmp_path, FEW) == FEW


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
def test_t01_a_run_killed_at_every_operation_ends_with_the_same_bits(kind: str, tmp_path: Path, count: Count) -> None:
    tried = sweep(kind, tmp_path, FEWER.get(kind))
    assert tried == FEWER[kind] if kind in FEWER else tried > 100
    count("T1", f"kill points, {kind}", tried)


# -- what the checks are worth -----------------------------------------------------------------------------------------


def believing(kind: str, folder: Path) -> dict:
    """As `train`, with what `transformers.Trainer` does: written in place, and the newest name is believed."""
    CheckpointedTrainer._save_checkpoint = mixin.MicroRowsTrainer._save_checkpoint
    mixin.newest_verified = lambda directory, log: (checkpoints(directory) or [None])[-1]
    return train(kind, folder)


def test_t01_without_commit_and_verification_the_sweep_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="sft, killed at"):
        sweep("sft", tmp_path, 6, believing)
