"""How often the intervals hold what they should: simulated, against a truth that is known.

usage: python tests/benchmarks/coverage.py [--simulations N]

Prints a Markdown table. Every interval says 95 %; coverage within 1.5 points of that is what `tests/unit/stats` asks
for where the sample is not tiny. With 2,000 simulations the standard error of a coverage is half a point.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from prefopt.stats.intervals import (
    Interval,
    bootstrap_crossed,
    bootstrap_mean,
    bootstrap_ratio,
    wilson,
)
from prefopt.stats.length_control import length_controlled_win_rate
from prefopt.stats.ratings import Game, bradley_terry_intervals

RESAMPLES = 1000
Case = Callable[[np.random.Generator, int], tuple[Interval, float]]


def rate(size: int, truth: float) -> Case:
    return lambda rng, seed: (wilson(int(rng.binomial(size, truth)), size), truth)


def mean(clusters: int, per_cluster: int, draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> Case:
    """Several samples per prompt, with a prompt's own level: `draw` has mean 0."""

    def case(rng: np.random.Generator, seed: int) -> tuple[Interval, float]:
        values = draw(rng, (clusters, 1)) + 0.5 * draw(rng, (clusters, per_cluster))
        names = np.repeat(np.arange(clusters), per_cluster).tolist()
        return bootstrap_mean(values.ravel().tolist(), names, resamples=RESAMPLES, seed=seed), 0.0

    return case


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.exponential(size=shape) - 1


def paired(rng: np.random.Generator, seed: int) -> tuple[Interval, float]:
    """As in `prefopt.stats.paired.paired_difference`, without its p-value."""
    hard = rng.normal(size=100)
    first, second = (hard + shift + 0.5 * rng.normal(size=100) for shift in (0.2, 0.0))
    return bootstrap_mean((first - second).tolist(), resamples=RESAMPLES, seed=seed), 0.2


def ratio(rng: np.random.Generator, seed: int) -> tuple[Interval, float]:
    room = 2 + 0.5 * rng.normal(size=200)
    gain = 0.3 * room + 0.5 * rng.normal(size=200)
    return bootstrap_ratio(gain.tolist(), room.tolist(), resamples=RESAMPLES, seed=seed), 0.3


def crossed(seeds: int) -> Case:
    def case(rng: np.random.Generator, seed: int) -> tuple[Interval, float]:
        table = 0.2 * rng.normal(size=(seeds, 1)) + rng.normal(size=(1, 100)) + rng.normal(size=(seeds, 100))
        return bootstrap_crossed(table.tolist(), resamples=RESAMPLES, seed=seed), 0.0

    return case


def strength(rng: np.random.Generator, seed: int) -> tuple[Interval, float]:
    games = []
    for _ in range(200):
        a, b = rng.choice(3, size=2, replace=False)
        games.append(Game(str(a), str(b), float(rng.uniform() < 1 / (1 + np.exp(0.5 * (b - a))))))
    found = bradley_terry_intervals(games, "0", resamples=200, seed=seed)["2"]
    return found, 1.0


def length_controlled(rng: np.random.Generator, seed: int) -> tuple[Interval, float]:
    extra = rng.normal(5, 10, size=200)
    chance = 1 / (1 + np.exp(-(0.5 + np.tanh(extra / 10))))
    wins = (rng.uniform(size=200) < chance).astype(float)
    return length_controlled_win_rate(wins.tolist(), extra.tolist(), resamples=200, seed=seed), 1 / (1 + np.exp(-0.5))


CASES: tuple[tuple[str, str, Case, int], ...] = (
    ("Wilson", "rate 0.5 of 256", rate(256, 0.5), 10),
    ("Wilson", "rate 0.05 of 256", rate(256, 0.05), 10),
    ("bootstrap of a mean, clustered", "100 prompts x 2, normal", mean(100, 2, normal), 1),
    ("bootstrap of a mean, clustered", "256 prompts x 2, skewed", mean(256, 2, skewed), 1),
    ("bootstrap of a mean, clustered", "20 prompts x 2, normal", mean(20, 2, normal), 1),
    ("bootstrap of a paired difference", "100 prompts", paired, 1),
    ("bootstrap of a ratio (headroom)", "200 prompts", ratio, 1),
    ("bootstrap over seeds and prompts", "10 seeds x 100 prompts", crossed(10), 1),
    ("bootstrap over seeds and prompts", "5 seeds x 100 prompts", crossed(5), 1),
    ("bootstrap over seeds and prompts", "3 seeds x 100 prompts", crossed(3), 1),
    ("Bradley-Terry strength", "3 systems, 200 games", strength, 0),
    ("win rate at equal length", "200 comparisons", length_controlled, 0),
)


def coverage(case: Case, simulations: int) -> float:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(simulations):
        interval, truth = case(rng, seed)
        hits += interval.low <= truth <= interval.high
    return hits / simulations


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    print("| interval at 95 % | sample | simulations | coverage |\n|---|---|---|---|")
    for name, sample, case, factor in CASES:
        count = max(1, simulations * factor) if factor else simulations // 4
        print(f"| {name} | {sample} | {count:,} | {coverage(case, count):.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
