"""Which of many digests are equal, in arrays: a Python set of a million would take ten times the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.bytes_]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


def repeated(digests: Digests) -> Mask:
    """Which digests stood earlier already, [N].

    Args:
        digests: Of 16 bytes each, [N].
    """
    found = np.zeros(len(digests), bool)
    involved = _alike(digests)
    _, first = np.unique(digests[involved], return_index=True)  # the first of those that are equal
    found[involved] = True
    found[involved[first]] = False
    return found


def member(digests: Digests, of: Digests) -> Mask:
    """Which digests are among others, [N].

    Args:
        digests: [N].
        of: Sorted.
    """
    if len(of) == 0:
        return np.zeros(len(digests), bool)
    found: Mask = of[np.searchsorted(of, digests).clip(max=len(of) - 1)] == digests
    return found


def with_both_directions(digests: Digests, direction: Mask) -> Numbers:
    """Numbers of those digests that occur with either direction, in order.

    Args:
        digests: Of 16 bytes each, [N].
        direction: [N].
    """
    involved = _alike(digests)
    _, group = np.unique(digests[involved], return_inverse=True)
    one = np.zeros(len(involved), bool)
    other = one.copy()
    one[group[direction[involved]]] = True
    other[group[~direction[involved]]] = True
    return involved[(one & other)[group]]


def _alike(digests: Digests) -> Numbers:
    """Numbers of digests whose first half another one has too, in order: few, so that these can be compared whole."""
    halves: Any = np.ascontiguousarray(digests).view(np.uint64)[::2]
    order = np.argsort(halves, kind="stable")
    ranked = halves[order]
    same = ranked[1:] == ranked[:-1]
    return np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
