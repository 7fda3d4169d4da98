"""Weights for groups of unequal size: what is rare counts more, and the mean weight stays 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def inverse_weights(groups: Sequence[Hashable]) -> list[float]:
    """A weight for each row, inversely proportional to the size of its group: all groups weigh the same together.

    Args:
        groups: The group of each row.

    Returns:
        Weights with mean 1.
    """
    return _rescaled(groups, {group: 1 / size for group, size in Counter(groups).items()})


def effective_number_weights(groups: Sequence[Hashable], beta: float) -> list[float]:
    """A weight for each row, inversely proportional to its group's effective number of rows.

    It is (1 - β^n) / (1 - β) (arXiv 1901.05555, proposition 1): rows repeat each other, so the n-th adds β^(n-1).
    β = 0 weights all rows alike; β → 1 is `inverse_weights`.

    Args:
        groups: The group of each row.
        beta: β in [0, 1).

    Returns:
        Weights with mean 1.

    Raises:
        ValueError: For a β outside of [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), not {beta}")
    return _rescaled(groups, {group: (1 - beta) / (1 - beta**size) for group, size in Counter(groups).items()})


def group_weights(groups: Sequence[Hashable], kind: str, beta: float) -> list[float]:
    """Weights of a kind: `inverse` or `effective_number`, of which β is an option.

    Args:
        groups: The group of each row.
        kind: Which.
        beta: β in [0, 1).

    Raises:
        ValueError: For another kind, or a β outside of [0, 1).
    """
    if kind == "inverse":
        return inverse_weights(groups)
    if kind != "effective_number":
        raise ValueError(f"unknown group weights {kind!r}")
    return effective_number_weights(groups, beta)


def _rescaled(groups: Sequence[Hashable], raw: dict[Hashable, float]) -> list[float]:
    total = sum(raw[group] for group in groups)
    return [raw[group] * len(groups) / total for group in groups]
