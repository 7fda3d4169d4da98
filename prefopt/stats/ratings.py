"""Strengths of several systems from who beat whom (Bradley and Terry 1952)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from prefopt.stats.intervals import Interval, cluster_numbers

ELO_POINTS = 400 / float(np.log(10))  # Elo points of one unit of strength
_RIDGE = 1e-6  # keeps the strength of who never lost finite


class Game(NamedTuple):
    """One comparison.

    Attributes:
        first: A system.
        second: Another.
        outcome: 1 where the first won, 0 where it lost, 0.5 for a tie, or a share in between.
    """

    first: str
    second: str
    outcome: float


def bradley_terry(games: Sequence[Game], anchor: str) -> dict[str, float]:
    """Maximum-likelihood strengths θ with P(a beats b) = σ(θ_a - θ_b); a tie counts as half a win of each.

    Args:
        games: At least one.
        anchor: The system whose strength is 0.

    Returns:
        Strength of every system in nats; differences are log-odds. Who never lost gets a large but finite one.

    Raises:
        ValueError: For no games, outcomes out of [0, 1], a system against itself, or an anchor that did not play.
    """
    names, table = _table(games, anchor)
    return dict(zip(names, _fit(table, names.index(anchor)).tolist(), strict=True))


def bradley_terry_intervals(
    games: Sequence[Game],
    anchor: str,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Strengths with percentile bootstrap intervals; whole clusters of games, such as prompts, are resampled.

    Arguments and errors as `bradley_terry`.
    """
    names, _ = _table(games, anchor)
    number = {name: index for index, name in enumerate(names)}
    outcomes, index = cluster_numbers([game.outcome for game in games], clusters)
    tables = np.zeros((int(index.max()) + 1, len(names), len(names)))
    for game, outcome, cluster in zip(games, outcomes, index, strict=True):
        tables[cluster, number[game.first], number[game.second]] += outcome
        tables[cluster, number[game.second], number[game.first]] += 1 - outcome
    generator = np.random.default_rng(seed)
    at = names.index(anchor)
    best = _fit(tables.sum(0), at)
    drawn = np.empty((resamples, len(names)))
    for row in range(resamples):
        counts = generator.multinomial(len(tables), np.full(len(tables), 1 / len(tables)))
        drawn[row] = _fit(np.tensordot(counts, tables, axes=1), at, best)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: Interval(float(best[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)}


def elo(strength: float) -> float:
    """A strength on the scale of Elo, where the anchor has 1000 and 400 points are odds of ten to one."""
    return 1000 + ELO_POINTS * strength


def _table(games: Sequence[Game], anchor: str) -> tuple[list[str], NDArray[np.float64]]:
    """Names in order of appearance, and how often each beat each."""
    if not games:
        raise ValueError("no games were played")
    names = list(dict.fromkeys(name for game in games for name in (game.first, game.second)))
    if anchor not in names:
        raise ValueError(f"{anchor!r} did not play; {', '.join(names)} did")
    wins = np.zeros((len(names), len(names)))
    for game in games:
        if game.first == game.second or not 0 <= game.outcome <= 1:
            raise ValueError(f"not a game: {game}")
        wins[names.index(game.first), names.index(game.second)] += game.outcome
        wins[names.index(game.second), names.index(game.first)] += 1 - game.outcome
    return names, wins


def _fit(wins: NDArray[np.float64], anchor: int, start: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        gaps = theta[:, None] - theta[None, :]
        pulls = wins * expit(-gaps)
        value = -(wins * log_expit(gaps)).sum() + _RIDGE * (theta**2).sum()
        return float(value), pulls.sum(0) - pulls.sum(1) + 2 * _RIDGE * theta

    found = minimize(loss, np.zeros(len(wins)) if start is None else start, jac=True, method="L-BFGS-B")
    strengths: NDArray[np.float64] = found.x - found.x[anchor]
    return strengths
