"""What costs are priced at: weights that are written, that follow a schedule, or that are learned against a target."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prefopt.recipe.options.penalties import PenaltySpec
from prefopt.rewards.costs.lexicon import Banned
from prefopt.rewards.costs.sample import Cost, Measured

LEAST_WINDOW = 256
"""Episodes that a rate is measured on, at least."""
_TARGETS = 2.0
"""A window is so long that, at the target, so many violations are to be expected in it."""


class Price(Protocol):
    """How much a cost of 1 takes off the reward now.

    Attributes:
        weight: The price, not negative.
    """

    @property
    def weight(self) -> float:
        """The price of now."""
        ...

    def see(self, measured: Sequence[Measured]) -> None:
        """Take in completions of the reference, before training: nothing moves."""
        ...

    def update(self, measured: Sequence[Measured]) -> None:
        """Take in the completions of a rollout, after they were priced."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        ...


class ScheduledPrice:
    """A weight that follows from the number of episodes: constant, or from one value to another.

    With s(x) = x (linear) or (1 - cos πx) / 2 (cosine), warm-up W and length E of the schedule, at episode e:
    weight(e) = min(1, e / W) · (start + (end - start) · s(min(1, max(0, e - W) / E))).

    Args:
        end: The weight after the schedule.
        start: At its beginning; `end` for a constant weight.
        episodes: Of the schedule.
        warmup: Episodes over which the weight rises from 0.
        cosine: Whether the schedule is a cosine.
    """

    def __init__(
        self, end: float, start: float | None = None, episodes: int = 1, warmup: int = 0, cosine: bool = False
    ) -> None:
        self._start, self._end = end if start is None else start, end
        self._episodes, self._warmup, self._cosine = episodes, warmup, cosine
        self._seen = 0

    @property
    def weight(self) -> float:
        """The price of now."""
        passed = min(1.0, max(0, self._seen - self._warmup) / self._episodes)
        share = (1 - math.cos(math.pi * passed)) / 2 if self._cosine else passed
        risen = min(1.0, self._seen / self._warmup) if self._warmup else 1.0
        return risen * (self._start + (self._end - self._start) * share)

    def see(self, measured: Sequence[Measured]) -> None:
        """Nothing: only episodes of training count."""

    def update(self, measured: Sequence[Measured]) -> None:
        """Count the episodes of a rollout."""
        self._seen += len(measured)

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        return {"seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self._seen = int(state["seen"])


class Multiplier:
    """A Lagrange multiplier: the weight rises while a rate is above its target, and falls while it is below.

    Of n episodes, with v the mean over the last W of them and target d, e = clip((v - d) / d, -1, 1) and h = n / W:

        additive:  λ ← clip(λ + η h e, λ_min, λ_max)        projected gradient ascent
        log:       λ ← clip(λ exp(η h e), λ_min, λ_max)     arXiv 2310.12773's, which stalls as λ nears 0

    The error is in units of the target and a step in shares of the window, so that η means the same for a target of
    1 % and of 0.1 %: at twice the target, λ rises by η in a window.

    Args:
        target: d, of a rate or a mean.
        window: W, in episodes.
        initial: λ at the beginning.
        bounds: λ_min and λ_max.
        step_size: η.
        log: Whether steps multiply.
        value: What of a measurement is averaged.

    Raises:
        ValueError: When bounds are out of order, or a logarithmic step would start at 0.
    """

    def __init__(  # noqa: PLR0913  (keyword-only)
        self,
        target: float,
        *,
        window: int,
        initial: float = 0.0,
        bounds: tuple[float, float] = (0.0, 10.0),
        step_size: float = 0.2,
        log: bool = False,
        value: Any = None,
    ) -> None:
        if not 0 <= bounds[0] <= initial <= bounds[1] or (log and bounds[0] == 0):
            raise ValueError(f"{initial} must lie within {bounds}, and a logarithmic step above 0")
        self.target = target
        self.weight = initial
        self._bounds = bounds
        self._step_size = step_size
        self._log = log
        self._value = value or (lambda measured: measured.value)
        self._window: deque[float] = deque(maxlen=window)

    @property
    def level(self) -> float | None:
        """The rate, or the mean, over the window; None before anything was seen."""
        return math.fsum(self._window) / len(self._window) if self._window else None

    def see(self, measured: Sequence[Measured]) -> None:
        """Fill the window, and take no step."""
        self._window.extend(float(self._value(each)) for each in measured)

    def update(self, measured: Sequence[Measured]) -> None:
        """Take in the episodes of a rollout, of all ranks, and take a step."""
        self.see(measured)
        if self.level is None or self._window.maxlen is None:
            return
        error = min(max((self.level - self.target) / self.target, -1.0), 1.0)
        step = self._step_size * error * min(1.0, len(measured) / self._window.maxlen)
        weight = self.weight * math.exp(step) if self._log else self.weight + step
        self.weight = min(max(weight, self._bounds[0]), self._bounds[1])

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        return {"weight": self.weight, "window": list(self._window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self.weight = float(state["weight"])
        self._window.clear()
        self._window.extend(float(value) for value in state["window"])


def window_of(spec: PenaltySpec) -> int:
    """Episodes that a rate is measured on."""
    if spec.window_episodes is not None or spec.target is None:
        return spec.window_episodes or LEAST_WINDOW
    return LEAST_WINDOW if spec.target_rate is None else max(LEAST_WINDOW, math.ceil(_TARGETS / spec.target))


def price_of(spec: PenaltySpec, threshold: float) -> Price:
    """The price that options say.

    Args:
        spec: Options.
        threshold: A completion violates where its cost is above it.
    """
    if spec.weight is not None:
        return ScheduledPrice(
            spec.weight,
            spec.weight if spec.schedule == "constant" else spec.start_weight,
            spec.schedule_episodes or 1,
            spec.warmup_episodes,
            spec.schedule == "cosine",
        )
    assert spec.target is not None  # the schema asks for one of them

    def violates(measured: Measured) -> float:
        return float(measured.value > threshold)

    def expected(measured: Measured) -> float:
        return violates(measured) if measured.expected is None else measured.expected

    rate = expected if spec.estimate == "expected" else violates
    return Multiplier(
        spec.target,
        window=window_of(spec),
        initial=spec.initial_weight,
        bounds=(spec.min_weight, spec.max_weight),
        step_size=spec.step_size,
        log=spec.step == "log",
        value=rate if spec.target_rate is not None else None,
    )


@dataclass(frozen=True)
class Penalty:
    """A cost with its price.

    Attributes:
        cost: What is measured.
        price: What it is priced at.
        watched: Words whose probability is asked for while completions are sampled, for a rate that is expected.
    """

    cost: Cost
    price: Price
    watched: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: PenaltySpec, cost: Cost) -> Penalty:
        """The penalty that options say, for the cost that they name."""
        watched = cost.words if spec.estimate == "expected" and isinstance(cost, Banned) else ()
        return cls(cost, price_of(spec, cost.threshold), watched)

    @property
    def label(self) -> str:
        """What metrics call it."""
        return self.cost.label
