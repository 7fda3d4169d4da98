"""kill -9 at statements of the ledger while samples and judgements are made: nothing that is kept is made again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefopt.feedback import sampling
from prefopt.pipeline.stages import collect
from prefopt.store import ledger as ledgers
from prefopt.store.ledger import LEDGER_FILE, Ledger
from tests.faults.conftest import Count
from tests.faults.injection import some
from tests.faults.runs import STAGES, Experiment

TABLES = ("samples", "scores", "judgements")
FEW = 2
MANY = 40
TRANSACTION = ("BEGIN", "INSERT", "COMMIT")


class Counted:
    """In the stage's process: counts statements that write, notes what is handed to the ledger, and kills.

    Attributes:
        at: Which statement; None for none.
    """

    def __init__(self, folder: Path, at: int | None) -> None:
        attempt = len(list(folder.glob("made-*")))
        self.statements, self.made, self.at = folder / f"statements-{attempt}", folder / f"made-{attempt}", at
        self.statements.write_text("")
        self.made.write_text("")

    def install(self) -> None:
        sampling._BATCHES = 1
        collect.SCORED_AT_ONCE = 9
        connect = sqlite3.connect

        def watched(*arguments, **named):
            found = connect(*arguments, **named)
            found.set_trace_callback(self.seen)
            return found

        ledgers.sqlite3 = SimpleNamespace(
            connect=watched, OperationalError=sqlite3.OperationalError, DatabaseError=sqlite3.DatabaseError
        )
        for name in ("add_samples", "add_scores", "add_judgements"):
            setattr(Ledger, name, self.noted(getattr(Ledger, name)))

    def seen(self, statement: str) -> None:
        if statement.startswith(TRANSACTION):
            with self.statements.open("a") as file:
                file.write(f"{statement.split()[0]}\n")
            if self.count() - 1 == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def noted(self, add: Callable[..., None]) -> Callable[..., None]:
        def told(ledger: Ledger, *arguments):
            with self.made.open("a") as file:
                file.write("".join(f"{key}\n" for key in arguments[-1]))
            add(ledger, *arguments)

        return told

    def count(self) -> int:
        return self.statements.read_text().count("\n")

    def keys(self) -> list[str]:
        return self.made.read_text().split()


def collected(experiment: Experiment, at: int | None = None) -> Counted:
    """Runs the collection, killed at a statement."""
    counted = Counted(experiment.directory, at)
    experiment.prepare = counted.install
    ended = experiment.run(only=("pairs",))
    assert not ended.error, ended.error
    assert ended.value["exit_code"] == (0 if at is None else 3), ended.value["errors"]
    return counted


def kept(experiment: Experiment) -> set[str]:
    path = experiment.out / "ledger" / LEDGER_FILE
    with closing(sqlite3.connect(path)) as ledger:
        if not ledger.execute("SELECT 1 FROM sqlite_master").fetchall():
            return set()
        return {key for table in TABLES for (key,) in ledger.execute(f"SELECT key FROM {table}")}


def sweep(whole: Experiment, folder: Path, few: int | None) -> int:
    experiment = whole.copy(folder, STAGES[2:])
    shutil.rmtree(experiment.out / "ledger")
    uninterrupted = collected(experiment)
    expected = experiment.results(("pairs",))
    rows = (experiment.folder("pairs") / "pairs.jsonl").read_bytes()
    assert len(uninterrupted.keys()) == len(set(uninterrupted.keys())) > 60 and uninterrupted.count() > 70
    points = some(uninterrupted.count(), few)
    for number in points:
        for name in ("stages/pairs", "ledger"):
            shutil.rmtree(experiment.out / name)
        killed = collected(experiment, number)
        safe = kept(experiment)
        again = collected(experiment)
        where = f"killed at statement {number}"
        assert set(again.keys()) & safe == set(), f"{where}: made again"
        assert set(again.keys()) | safe == set(uninterrupted.keys()), where
        # What was handed over and is not kept is the transaction that was cut: a chunk at most.
        assert len(set(killed.keys()) - safe) <= 24, where
        assert experiment.results(("pairs",)) == expected, where
        assert (experiment.folder("pairs") / "pairs.jsonl").read_bytes() == rows, where
    return len(points)


@pytest.mark.slow
def test_t03_collecting_killed_at_some_statements_makes_nothing_twice(whole: Experiment, tmp_path: Path) -> None:
    assert sweep(whole, tmp_path, FEW) == FEW


@pytest.mark.sweep
def test_t03_collecting_killed_at_every_transaction_makes_nothing_twice(
    whole: Experiment, tmp_path: Path, count: Count
) -> None:
    tried = sweep(whole, tmp_path, MANY)
    assert tried == MANY
    count("T3", "kill points, statements of the ledger", tried)


@pytest.mark.slow
def test_t03_without_the_ledger_what_is_made_again_is_noticed(whole: Experiment, tmp_path: Path) -> None:
    experiment = whole.copy(tmp_path, STAGES[2:])
    shutil.rmtree(experiment.out / "ledger")
    first = collected(experiment)
    for name in ("stages/pairs", "ledger"):
        shutil.rmtree(experiment.out / name)
    assert set(collected(experiment).keys()) == set(first.keys()) != set()
    assert json.loads((experiment.folder("pairs") / "manifest.json").read_text())["stage"] == "pairs"
