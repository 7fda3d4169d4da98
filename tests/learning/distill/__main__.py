"""Train and measure students by target, and rounds of self-training; write the page.

usage: python -m tests.learning.distill [--results docs/measured/distill.jsonl] [--folder bench/distill]
       [--seeds 0 1 2] [--only TEXT] [--write] [--dry-run]

One process of one thread. What is finished is in RESULTS and is not trained again; the base of each seed is in FOLDER.
`--only` takes the runs whose name begins so.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from tests.benchmarks.against_trl.peers import ROOT
from tests.learning.distill import page, rounds, speed, students, world
from tests.learning.results import MEASURED, Rows

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One training, or measurement.

    Attributes:
        key: Its name in the file of results.
        seed: Of everything random.
        make: What it gives, from the base of the seed.
    """

    key: str
    seed: int
    make: Callable[[PreTrainedModel], Any]


def runs(seeds: list[int]) -> Iterator[Run]:
    """All of them, in order."""
    for seed in seeds:
        yield Run(f"targets/teacher/{seed}", seed, partial(students.teacher, seed=seed))
        yield Run(f"targets/before/{seed}", seed, partial(students.before, seed=seed))
        for name in students.TARGETS:
            yield Run(f"targets/{name}/{seed}", seed, partial(students.student, name=name, seed=seed))
        for name in rounds.LOOPS:
            yield Run(f"rounds/{name}/{seed}", seed, partial(rounds.loop, name=name, seed=seed))
    yield Run("speed", seeds[0], lambda model: speed.gained())


def base(folder: Path, seed: int) -> PreTrainedModel:
    """The model of a seed, trained where it is not there yet."""
    place = folder / f"base-{seed}"
    if not (place / "config.json").is_file():
        staging = place.with_suffix(".part")
        world.base(seed).save_pretrained(staging)
        staging.rename(place)
    model: PreTrainedModel = LlamaForCausalLM.from_pretrained(place)
    return model.requires_grad_(False).eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=MEASURED / "distill.jsonl")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "distill")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", default="", help="runs whose name begins so")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--dry-run", action="store_true", help="print what is missing")
    a = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("PREFOPT_THREADS", "1")))
    a.folder.mkdir(parents=True, exist_ok=True)
    found = Rows(a.results)
    wanted = [run for run in runs(a.seeds) if run.key.startswith(a.only)]
    missing = [run for run in wanted if run.key not in found.by_key]
    if a.dry_run:
        print("\n".join(run.key for run in missing))
        return 0
    for run in missing:
        start = time.perf_counter()
        model = copy.deepcopy(base(a.folder, run.seed))
        measured = run.make(model)
        seconds = round(time.perf_counter() - start, 1)
        found.add(run.key, seconds=seconds, measured=measured)
        print(f"{run.key}: {seconds} s", flush=True)
    if a.write:
        results = {key: row["measured"] for key, row in found.by_key.items()}
        page.write(ROOT / "docs" / "benchmarks.md", results, a.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
