"""The trainings of the frontier and what was measured of them: resumable, each a few processes of one thread."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.against_trl.peers import peers_folder
from tests.learning.frontier import plan, world
from tests.learning.frontier.estimates import without_each
from tests.learning.frontier.limit import joined
from tests.learning.frontier.plan import Process, Run
from tests.learning.frontier.score import KLS, Point, chosen
from tests.learning.results import Row, Rows, python

PARTS = 16
"""Processes that estimate the limit: each is kept once it is done."""


class Results:
    """The file of results, and what is missing in it.

    Args:
        file: It.
        folder: Where runs leave their adapters until they are measured.
        workers: Runs at a time.
    """

    def __init__(self, file: Path, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder, workers
        self._prompts = folder / "prompts"
        self._found = Rows(file)
        self.rows = {key: row for key, row in self._found.by_key.items() if valid(key, row)}
        if outdated := [key for key in self._found.by_key if key not in self.rows]:
            print(
                f"{len(outdated)} rows of {file.name} are of other settings, another recipe or another task, or lack "
                f"blocks of openings, and count as missing: {'; '.join(outdated)}",
                file=sys.stderr,
            )

    def _keep(self, key: str, **values: Any) -> None:
        self._found.add(key, **values)
        self.rows[key] = self._found.by_key[key]

    @property
    def base(self) -> Row:
        """What was measured of the base."""
        found: Row = self.rows["base"]["measured"][0]
        return found

    def path(self, run: Run, unseen: bool = False) -> list[Point]:
        """From the base through the policies that a run kept.

        Args:
            run: It.
            unseen: On the openings that nobody trains on, instead of on all.
        """
        rows = [self.base | {"trained": 0.0}, *self.rows[run.key]["measured"]]
        found = [row["unseen"] | {"trained": row["trained"]} if unseen else row for row in rows]
        return [Point(row["kl"], row["reward"], trained=row["trained"], without=_without(row)) for row in found]

    def limit(self) -> list[Point]:
        """From the base, as the same completions show it, by growing tilt."""
        return [
            Point(row["kl"], row["reward"], row["reward_se"], row["kl_se"]) for row in self.rows["limit"]["measured"]
        ]

    def best_of_n(self) -> list[Point]:
        """By growing n, from the base, as the same completions show it."""
        return [Point(row["kl"], row["reward"], row["reward_se"]) for row in self.rows["limit"]["best_of_n"]]

    def complete(self, runs: Sequence[Run]) -> None:
        """Train and measure what is missing of some runs.

        Raises:
            RuntimeError: When a process fails, once those that run beside it are done.
        """
        self._start()
        missing = [run for run in runs if run.key not in self.rows]
        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(self._one, missing))

    def estimate_limit(self) -> None:
        """Estimate what no policy passes, from completions of the base and of two that `plan.PROPOSALS` leaves.

        Raises:
            RuntimeError: When a process fails.
        """
        self._start()
        if "limit" in self.rows:
            return
        folder, _ = self._trained(plan.PROPOSALS)
        kept = list(plan.adapters(plan.PROPOSALS, folder))
        words = ["-m", f"{plan.HERE}.limit", str(self._prompts), str(kept[len(kept) // 2]), str(kept[-1])]

        def one(part: int) -> None:
            said = run(Process([*words, "--part", str(part), "--parts", str(PARTS)]))
            self._keep(f"limit/{part}", lines=[json.loads(line) for line in said.splitlines() if line[:1] == "{"])

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(one, (part for part in range(1, PARTS + 1) if f"limit/{part}" not in self.rows)))
        rows = joined([self.rows[f"limit/{part}"]["lines"] for part in range(1, PARTS + 1)])
        self._keep(
            "limit",
            measured=[row for row in rows if "tilt" in row],
            best_of_n=[row for row in rows if "n" in row],
        )
        shutil.rmtree(folder)

    def _start(self) -> None:
        world.write_prompts(self._prompts)
        if "base" not in self.rows:
            self._keep("base", measured=self._measured([]), openings=world.counts(self._prompts))

    def _trained(self, wanted: Run) -> tuple[Path, float]:
        """Where a run left its adapters, and seconds of training."""
        # With the digest: what an attempt with other settings has left is not gone on with.
        name = f"{wanted.key}/{wanted.digest}".replace("/", "_").replace(" ", "-")
        folder, start = self._folder / "runs" / name, time.perf_counter()
        for process in plan.processes(wanted, folder, self._prompts):
            run(process)
        return folder, time.perf_counter() - start

    def _one(self, wanted: Run) -> None:
        folder, seconds = self._trained(wanted)
        adapters = plan.adapters(wanted, folder)
        rows = self._measured(list(adapters))
        measured = [row | {"trained": part} for row, part in zip(rows, adapters.values(), strict=True)]
        self._keep(wanted.key, digest=wanted.digest, seconds=round(seconds, 1), measured=measured)
        shutil.rmtree(folder)
        end = measured[-1]
        print(f"{wanted.key}: reward {end['reward']:.2f} at KL {end['kl']:.2f} ({seconds:.0f} s)", flush=True)

    def _measured(self, adapters: Sequence[Path]) -> list[Row]:
        words = ["-m", f"{plan.HERE}.measure", str(self._prompts), *map(str, adapters)]
        said = run(Process(words))
        rows = [json.loads(line) for line in said.splitlines() if line.startswith('{"adapter"')]
        return [{name: value for name, value in row.items() if name != "adapter"} for row in rows]


def _without(row: Row) -> list[tuple[float, float]]:
    """KL and reward without each block."""
    blocks = row.get("blocks", {"kl": [], "reward": []})
    kls, rewards = blocks["kl"], blocks["reward"]
    return list(zip(without_each(kls), without_each(rewards), strict=True))


def valid(key: str, row: Mapping[str, Any]) -> bool:
    """Whether a row says what would be found today.

    The limit's do. Others have the means of blocks of openings, but where all that they are for is to choose a setting.
    """
    if key.partition("/")[0] == "limit":
        return True
    blocks = all("blocks" in each for each in row.get("measured", ()))
    if key == "base":
        return "openings" in row and blocks
    run = Run.of(key)
    return row.get("digest") is not None and row["digest"] == run.digest and (blocks or run.seed == plan.CHOSEN_ON)


def run(process: Process) -> str:
    """What a process says; it finds the peers' side."""
    return python(process.words, {"PREFOPT_BENCH": str(peers_folder()), **process.environment})


def tried(budgets: Sequence[int], methods: Sequence[str]) -> list[Run]:
    """All settings, on the seed that they are chosen on."""
    return [
        Run(method, budget, setting, plan.CHOSEN_ON)
        for budget in budgets
        for method in plan.methods(budget, methods)
        for setting in plan.settings(method, budget)
    ]


def best(results: Results, method: str, budget: int) -> dict[float, str | None]:
    """The setting of a method for each KL, by the first seed."""
    runs = {name: results.path(Run(method, budget, name, plan.CHOSEN_ON)) for name in plan.settings(method, budget)}
    return {kl: chosen(runs, kl) for kl in KLS}


def finished(results: Results, method: str, budget: int) -> bool:
    """Whether all of its runs are done, so that the page can say how it did."""
    if any(run.key not in results.rows for run in tried([budget], [method])):
        return False
    return all(run.key in results.rows for run in reported(results, [budget], [method]))


def reported(results: Results, budgets: Sequence[int], methods: Sequence[str]) -> list[Run]:
    """The chosen settings, on the other seeds."""
    found = []
    for budget in budgets:
        for method in plan.methods(budget, methods):
            settings = dict.fromkeys(name for name in best(results, method, budget).values() if name is not None)
            found += [Run(method, budget, name, seed) for seed in plan.REPORTED for name in settings]
    return found
