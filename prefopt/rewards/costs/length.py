"""Costs of how long a completion is, how it ends, and how sure the reward is of it."""

from __future__ import annotations

import re

from prefopt.recipe.options.costs import EnsembleStdCost, LengthCost, MissingEosCost
from prefopt.rewards.costs.sample import NOTHING, Measured, RuleCost, Sample, Span

WORD = re.compile(r"\S+")


class Length(RuleCost):
    """What a completion of n units is beyond its limit L.

    linear: max(0, (n - L) / L), at most `cap`;
    hard: 1 where n > L;
    soft: 0 up to L - B, (n - L + B) / B from there, 1 from L on (arXiv 2503.14476, equation 13, with the sign changed).
    Below `minimum` M it is (M - n) / M, or 1 where hard: without it the empty completion is the cheapest.
    """

    def __init__(self, spec: LengthCost) -> None:
        super().__init__(spec)
        self._spec = spec

    def of(self, sample: Sample) -> Measured:
        """The measurement, with what is beyond the limit (or the buffer) as span."""
        spec = self._spec
        count = self._count(sample)
        if spec.minimum is not None and count < spec.minimum:
            return Measured(1.0 if spec.shape == "hard" else (spec.minimum - count) / spec.minimum)
        free = spec.limit - (spec.buffer or 0)
        if count <= free:
            return NOTHING
        return Measured(self._beyond(count), self._rest(sample, free))

    def _count(self, sample: Sample) -> int:
        if self._spec.unit == "tokens":
            return len(sample.tokens(self.label))
        return len(sample.text) if self._spec.unit == "characters" else len(WORD.findall(sample.text))

    def _beyond(self, count: int) -> float:
        spec = self._spec
        if spec.shape == "hard":
            return 1.0
        if spec.buffer is not None:
            return min(1.0, (count - spec.limit + spec.buffer) / spec.buffer)
        share = (count - spec.limit) / spec.limit
        return share if spec.cap is None else min(share, spec.cap)

    def _rest(self, sample: Sample, free: int) -> tuple[Span, ...]:
        if self._spec.unit == "tokens":
            return sample.characters(free, len(sample.tokens(self.label)))
        end = len(sample.text)
        start = free if self._spec.unit == "characters" else [m.start() for m in WORD.finditer(sample.text)][free]
        return ((start, end),)


class MissingEos(RuleCost):
    """1 where the policy did not end the completion: it was cut."""

    def __init__(self, spec: MissingEosCost) -> None:
        super().__init__(spec)

    def of(self, sample: Sample) -> Measured:
        """The measurement; no span, as what is missing is nowhere."""
        return NOTHING if sample.finished else Measured(1.0)


class EnsembleStd(RuleCost):
    """The deviation between the members of a reward ensemble; its weight is the λ of UWO with std instead of variance.

    Source: arXiv 2310.02743, section 3.2.
    """

    def __init__(self, spec: EnsembleStdCost) -> None:
        super().__init__(spec)

    def of(self, sample: Sample) -> Measured:
        """The measurement; no span."""
        return Measured(sample.deviation)
