"""What shaping gives: rewards, and every term that they are the sum of.

Shape suffix: N completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from torch import Tensor

from prefopt.rewards.costs.sample import Measured, costs_to_json

_UNPRICED = ("score", "missing_eos", "clip")


@dataclass(frozen=True, eq=False)
class ShapedReward(Sequence[float]):
    """Rewards of N completions, with all that they are made of. As a sequence, the totals as numbers.

    Attributes:
        raw: As the scorer gave it, in its own unit, [N].
        terms: What the total is the sum of, [N] each: `score` (scaled and bounded), `missing_eos`, -λ cost by the name
            of each penalty, and `clip` where the sum was cut.
        total: The reward, [N].
        measured: Cost and spans of every completion, by the name of the penalty.
        weights: λ by the name of the penalty, in deviations of the reference's rewards.
        violated: Share of completions whose cost is above its threshold, by the name of the penalty.
        levels: Rate or mean over the window of a learned weight, before these completions, by the name of the penalty.
        price_unit: One of those deviations, in the unit of the total.
    """

    raw: Tensor
    terms: Mapping[str, Tensor]
    total: Tensor
    measured: Mapping[str, Sequence[Measured]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    violated: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    price_unit: float = 1.0

    def __len__(self) -> int:
        return len(self.total)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        found: Any = self.total[index].tolist()
        return found  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[float]:
        return iter(self.total.tolist())

    def to_json(self, index: int) -> dict[str, float]:
        """The terms of one completion by name."""
        return {name: float(term[index]) for name, term in self.terms.items()}

    def costs_of(self, index: int) -> dict[str, Any]:
        """Costs of one completion, and the spans that caused them, for a line of `samples.jsonl`; empty without any."""
        if not self.measured:
            return {}
        found = {name: each[index] for name, each in self.measured.items()}
        return {"terms": self.to_json(index), **costs_to_json(found)}

    def metrics(self) -> dict[str, float]:
        """Averages by the names of `prefopt.tracking.metrics`; none where nothing is priced."""
        if not self.measured:
            return {}
        found = {f"shaped/{name}": float(self.terms[name].mean()) for name in _UNPRICED if name in self.terms}
        found["shaped/price_unit"] = self.price_unit
        found |= {f"penalty/{name}/level": level for name, level in self.levels.items()}
        for name, measured in self.measured.items():
            found[f"penalty/{name}/cost"] = sum(each.value for each in measured) / len(measured)
            found[f"penalty/{name}/rate"] = self.violated[name]
            found[f"penalty/{name}/weight"] = self.weights[name]
            found[f"penalty/{name}/term"] = float(self.terms[name].mean())
            expected = [each.expected for each in measured if each.expected is not None]
            if expected:
                found[f"penalty/{name}/expected_rate"] = sum(expected) / len(expected)
        return found

    def part(self, start: int, end: int) -> ShapedReward:
        """Some of the completions; shares and weights stay those of all."""
        return replace(
            self,
            raw=self.raw[start:end],
            terms={name: term[start:end] for name, term in self.terms.items()},
            total=self.total[start:end],
            measured={name: each[start:end] for name, each in self.measured.items()},
        )
