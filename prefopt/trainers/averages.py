"""Weighted averages of what a trainer saw since it last logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prefopt.losses.ppo import masked_mean


class Averages:
    """Sums of values and of their weights, by name."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Count a value, which may be an average itself, with the weight of what it is an average of."""
        pair = torch.tensor([float(value) * weight, weight], dtype=torch.float64)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def add_masked(self, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Count values [B, L] by name, where the mask, [B, L], is 1."""
        count = float(mask.sum())
        for name, each in values.items():
            self.add(name, masked_mean(each.detach(), mask), count)

    def snapshot(self) -> Mapping[str, Tensor]:
        """What is counted now, to go back to."""
        return dict(self._sums)

    def go_back(self, snapshot: Mapping[str, Tensor]) -> None:
        """Forget what was counted since."""
        self._sums = dict(snapshot)

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The averages by name, and begin anew; what nothing has weighed in has none.

        Args:
            reduce: Sums a tensor over all ranks; every rank has counted the same names.
        """
        found: dict[str, float] = {}
        for name in sorted(self._sums):
            total, weight = reduce(self._sums[name]).tolist()
            if weight > 0:
                found[name] = total / weight
        self._sums.clear()
        return found
