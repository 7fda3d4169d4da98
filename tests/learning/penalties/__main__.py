"""Run the experiments on penalties, and say what they showed.

usage: python -m tests.learning.penalties [--results docs/measured/penalties.jsonl] [--folder bench/penalties]
       [--workers 1] [--seeds 17 18 19] [--part a b far c d e a-grid b-grid speed most] [--dry-run] [--page]

Every run is one `prefopt run` of a recipe beside this file, with one thread; a stopped one goes on where it was. What
is finished is in RESULTS and is not run again. At the end, or with `--page` alone, the section "Penalties" of
docs/benchmarks.md and its picture are written from what is finished. PREFOPT_DATA and PREFOPT_MODELS name the folders
of data and models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.against_trl.peers import ROOT
from tests.learning.penalties import most, page, pairs, plan, speed, stories
from tests.learning.penalties.plan import PARTS, Run
from tests.learning.penalties.reading import READERS
from tests.learning.results import MEASURED, Rows, python

SPEED, MOST = "speed", "most"


class Results:
    """The file of results, and what is missing in it.

    Args:
        file: It.
        folder: Of the run folders.
        workers: Runs at a time.
    """

    def __init__(self, file: Path, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder, workers
        self._found = Rows(file)
        self.rows = self._found.by_key

    def missing(self, parts: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        """Runs without a row, all parts of the first seed before the second."""
        runs = [Run(part, seed) for seed in seeds for part in PARTS if part in parts]
        return [run for run in runs if run.key not in self.rows]

    def complete(self, runs: Sequence[Run]) -> None:
        """Run what is missing.

        Raises:
            RuntimeError: When a command fails, once those that run beside it are done.
        """
        made = {"PENALTIES_PAIRS": self._folder / "pairs", "PENALTIES_STORIES": self._folder / "stories"}
        os.environ |= {name: str(path) for name, path in made.items()}
        pairs.write(made["PENALTIES_PAIRS"])
        stories.write(made["PENALTIES_STORIES"])
        for recipe, shared in {(PARTS[run.part].recipe, PARTS[run.part].shared) for run in runs}:
            if shared:
                python(plan.shared_words(recipe, shared, self._shared(recipe)))
        folders: dict[str, list[Run]] = {}
        for run in runs:
            folders.setdefault(run.folder, []).append(run)
        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(self._in_order, folders.values()))

    def measure(self, what: str) -> None:
        """How long costs take beside sampling, or the most that can be kept in (b): each once."""
        if what not in self.rows:
            found = speed.measured() if what == SPEED else most.measured(self._folder / "stories")
            self._found.add(what, measured=found)

    def _shared(self, recipe: str) -> Path:
        return self._folder / "runs" / Path(recipe).stem

    def _in_order(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self._one(run)

    def _one(self, run: Run) -> None:
        out, part, start = self._folder / "runs" / run.folder, PARTS[run.part], time.perf_counter()
        if part.shared and not out.exists():
            copied = out.with_name(out.name + ".part")
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(self._shared(part.recipe), copied, symlinks=True)
            copied.rename(out)
        said = json.loads(python([*plan.words(run, out), "--json"]))
        folders = {each["stage"]: Path(each["directory"]) for each in said["stages"] if each["directory"]}
        seconds = time.perf_counter() - start
        self._found.add(run.key, seconds=round(seconds, 1), measured=READERS[run.part](folders))
        print(f"{run.key}: {part.title} ({seconds:.0f} s)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=MEASURED / "penalties.jsonl")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "penalties")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--part", nargs="+", default=[*PARTS, SPEED, MOST], choices=[*PARTS, SPEED, MOST])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(plan.SEEDS))
    parser.add_argument("--dry-run", action="store_true", help="print what is missing")
    parser.add_argument("--page", action="store_true", help="write the page from what is finished, and run nothing")
    a = parser.parse_args()
    results = Results(a.results, a.folder.absolute(), a.workers)
    missing = results.missing(a.part, a.seeds)
    once = [part for part in (SPEED, MOST) if part in a.part]
    if a.dry_run:
        print("\n".join([run.key for run in missing] + [part for part in once if part not in results.rows]))
        return 0
    if not a.page:
        a.folder.mkdir(parents=True, exist_ok=True)
        results.complete(missing)
        for part in once:
            results.measure(part)
    page.write(ROOT / "docs", results.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
