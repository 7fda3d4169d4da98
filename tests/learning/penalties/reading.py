"""From finished runs to what they say, as rows of the file of results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefopt.stats.intervals import Interval, bootstrap_mean
from tests.learning.penalties import plan
from tests.learning.penalties.score import Answers, by_policy, seen

Folders = Mapping[str, Path]
Row = dict[str, Any]


def lexicon_file() -> Path:
    """The word list."""
    return Path(os.environ["PREFOPT_DATA"]) / "vader-sentiment" / "vader_lexicon.txt"


def lexicon() -> dict[str, float]:
    """Valence of each word of the VADER list."""
    path = lexicon_file()
    lines = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]
    return {cells[0].lower(): float(cells[1]) for cells in lines}


def rows_of(folder: Path) -> list[Row]:
    """Lines of an evaluation's samples."""
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]


def metrics_of(folder: Path) -> dict[str, float]:
    """Numbers of a finished stage."""
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return found


def penalised(folders: Folders, base: str, stage: str, reward: Callable[[Row], float] | None = None) -> dict[str, Row]:
    """Every policy of an evaluation; gains are shares of what `free` gained on the same prompts.

    Args:
        folders: Of finished stages.
        base: Name of the policy that training began from.
        stage: `told`, or `grid`, in which `free` is not.
        reward: In place of the rows' own.
    """

    def read(name: str) -> dict[str, Answers]:
        rows = rows_of(folders[name])
        return by_policy(rows, "banned", None if reward is None else [reward(row) for row in rows])

    told = read("told")
    measured = told if stage == "told" else {name: each for name, each in read(stage).items() if name != base}
    return {
        name: seen(answers, told[base], None if name in (base, "free") else told["free"])._asdict()
        for name, answers in measured.items()
    }


def polite(folders: Folders, stage: str) -> Row:
    """Part a, or its grid."""
    return {"policies": penalised(folders, "sft", stage)}


def favourites(folders: Folders, stage: str) -> Row:
    """Part b, or its grid: with the five words' own valence, and without it."""
    from tests.learning.penalties.words import without

    valences = lexicon()
    left = penalised(folders, "base", stage, lambda row: without(row["completion"], valences, plan.WORDS))
    return {"policies": penalised(folders, "base", stage), "without": left}


def unlearned(folders: Folders) -> Row:
    """Part c."""
    words = [sys.executable, "-m", "tests.learning.penalties.flagged", os.environ["PENALTIES_STORIES"]]
    adapters = [str(folders[name] / "adapter") for name in ("imitate", "unlearn")]
    done = subprocess.run([*words, *adapters], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"adapter"')]
    names = ("base", "imitate", "unlearn")
    numbers = [{key: value for key, value in row.items() if key != "adapter"} for row in rows]
    return {"models": dict(zip(names, numbers, strict=True))}


def grouped(folders: Folders) -> Row:
    """Part d."""
    found: Row = {}
    for name in plan.LOSSES:
        metrics = {group: metrics_of(folders[f"{name}-{group}"]) for group in ("shop", "codes")}
        found[name] = {group: interval(each, "reward/accuracy") for group, each in metrics.items()}
    return {"losses": found}


def fooled(folders: Folders) -> Row:
    """Part e; the proxy's own scores are in the samples alone."""
    metrics, proxies = metrics_of(folders["fooled"]), proxy_scores(rows_of(folders["fooled"]))
    names = ("gold", "kl", "violation_rate", "length", "repetition")
    policies: dict[str, dict[str, Interval]] = {}
    for policy in ("sft", *plan.HACKED):
        known = [name for name in names if f"{policy}:{name}/mean" in metrics]
        policies[policy] = {name: interval(metrics, f"{policy}:{name}") for name in known}
        policies[policy]["proxy"] = proxies[policy]
    return {"reward": {"accuracy": interval(metrics_of(folders["proxy"]), "reward/accuracy")}, "policies": policies}


def proxy_scores(rows: Sequence[Row]) -> dict[str, Interval]:
    """Mean score by the proxy of each policy's completions."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["policy"], []).append(float(row["proxy"]))
    return {policy: bootstrap_mean(values, resamples=2000) for policy, values in found.items()}


def interval(metrics: Mapping[str, float], name: str) -> Interval:
    """A metric with its interval; the ends are its mean where it has none."""
    mean = metrics[f"{name}/mean"]
    return Interval(mean, metrics.get(f"{name}/ci_low", mean), metrics.get(f"{name}/ci_high", mean))


READERS: Mapping[str, Callable[[Folders], Row]] = {
    "a": partial(polite, stage="told"),
    "b": partial(favourites, stage="told"),
    "far": partial(favourites, stage="told"),
    "c": unlearned,
    "d": grouped,
    "e": fooled,
    "a-grid": partial(polite, stage="grid"),
    "b-grid": partial(favourites, stage="grid"),
}
