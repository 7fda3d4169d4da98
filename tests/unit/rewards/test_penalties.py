"""Prices: schedules in closed form, multipliers that find their target, and what can be known of rare violations."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prefopt.recipe.options.penalties import Penalties, PenaltySpec
from prefopt.rewards.costs.sample import Measured
from prefopt.rewards.penalties import LEAST_WINDOW, Multiplier, ScheduledPrice, price_of, window_of

NOTHING, HIT = Measured(0.0), Measured(1.0)


def spec(cost: str = "missing_eos", **options: Any) -> PenaltySpec:
    ((found,),) = [TypeAdapter(Penalties).validate_python([{"cost": cost, **options}])]
    return found


def hits(count: int, of: int) -> list[Measured]:
    return [HIT] * count + [NOTHING] * (of - count)


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"weight": 0.5}, {0: 0.5, 1000: 0.5}),
        ({"weight": 2.0, "warmup_episodes": 100}, {0: 0, 25: 0.5, 100: 2, 1000: 2}),
        ({"weight": 1.0, "schedule": "linear", "schedule_episodes": 100}, {0: 0, 50: 0.5, 100: 1, 900: 1}),
        (
            {"weight": 1.0, "start_weight": 3.0, "schedule": "cosine", "schedule_episodes": 100},
            {0: 3, 25: 3 - 2 * (1 - math.cos(math.pi / 4)) / 2, 50: 2, 100: 1, 101: 1},
        ),
        (
            {"weight": 0.0, "start_weight": 1.0, "schedule": "linear", "schedule_episodes": 100, "warmup_episodes": 50},
            {0: 0, 25: 0.5, 50: 1, 100: 0.5, 150: 0},
        ),
    ],
)
def test_a_schedule_is_its_formula(options: dict[str, Any], table: dict[int, float]) -> None:
    for episodes, weight in table.items():
        price = price_of(spec(**options), 0.0)
        for _ in range(episodes // 25):
            price.update([NOTHING] * 25)
        price.update([NOTHING] * (episodes % 25))
        assert price.weight == pytest.approx(weight), episodes


def test_what_is_only_seen_moves_no_price() -> None:
    for options in ({"weight": 1.0, "warmup_episodes": 9}, {"target_rate": 0.1}):
        price = price_of(spec(**options), 0.0)
        price.see(hits(90, 100))
        assert price.weight == 0


# -- multipliers -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 64), st.sampled_from(["additive", "log"]))
def test_the_multiplier_moves_towards_the_target(violating: int, step: str) -> None:
    options = {"step": step, "min_weight": 0.1, "initial_weight": 1.0, "window_episodes": 64}
    price = price_of(spec(target_rate=0.25, **options), 0.0)
    price.update(hits(violating, 64))
    assert math.copysign(1, price.weight - 1) == math.copysign(1, violating - 16) or violating == 16
    assert (price.weight == 1) == (violating == 16)


def test_one_step_is_the_formula() -> None:
    price = Multiplier(0.1, window=40, initial=1.0, step_size=0.2)
    price.update(hits(3, 20))  # 0.15: half of the target above it, and half a window
    assert price.weight == pytest.approx(1 + 0.2 * 0.5 * 0.5)
    price.update(hits(20, 20))  # 23 of 40: further than the target away
    assert price.weight == pytest.approx(1.05 + 0.2 * 0.5)
    log = Multiplier(0.1, window=40, initial=1.0, bounds=(0.1, 9), step_size=0.2, log=True)
    log.update(hits(3, 20))
    assert log.weight == pytest.approx(math.exp(0.05))


def test_bounds_hold_and_the_logarithmic_step_stalls_where_the_additive_one_does_not() -> None:
    additive = Multiplier(0.1, window=10, bounds=(0.0, 0.5))
    for _ in range(10):
        additive.update(hits(10, 10))
    assert additive.weight == 0.5
    low, high = (Multiplier(0.1, window=10, initial=0.01, bounds=(0.01, 9), log=log) for log in (True, False))
    for _ in range(5):
        low.update(hits(10, 10))
        high.update(hits(10, 10))
    assert high.weight - 0.01 == pytest.approx(1.0) and low.weight - 0.01 < 0.02


@pytest.mark.parametrize("step", ["additive", "log"])
@pytest.mark.parametrize(("start", "slope", "target"), [(0.3, 4.0, 0.05), (0.9, 2.0, 0.3), (0.02, 3.0, 0.001)])
def test_a_plant_that_answers_to_the_weight_is_brought_to_its_target(
    step: str, start: float, slope: float, target: float
) -> None:
    options = {"step": step, "min_weight": 1e-2, "initial_weight": 1e-2} if step == "log" else {}
    price = price_of(spec(target_rate=target, **options), 0.0)
    assert isinstance(price, Multiplier)
    price._value = lambda measured: measured.value  # the plant's rate itself
    levels = []
    for _ in range(2500):
        level = start * math.exp(-slope * price.weight)
        price.update([Measured(level)] * 128)
        levels.append(level)
    assert np.mean(levels[-100:]) == pytest.approx(target, rel=0.05)
    assert max(levels[-100:]) < 1.1 * target and price.weight == pytest.approx(
        math.log(start / target) / slope, rel=0.05
    )


def test_a_constraint_that_is_slack_costs_nothing_in_the_end() -> None:
    price = Multiplier(0.1, window=64, initial=2.0)
    for _ in range(40):
        price.update(hits(1, 64))
    assert price.weight == 0


def test_a_mean_is_a_constraint_too_and_a_threshold_says_what_violates() -> None:
    mean, rate = (
        price_of(spec("length", limit=9, **each), 0.5) for each in ({"target_mean": 0.2}, {"target_rate": 0.2})
    )
    for price in (mean, rate):
        price.update([Measured(0.4)] * 64)
    assert mean.weight > 0 and rate.weight == 0
    assert (mean.level, rate.level) == (pytest.approx(0.4), 0)


def test_what_is_expected_counts_where_it_is_known() -> None:
    options = {"target_rate": 0.1, "estimate": "expected", "words": ["bad"]}
    price = price_of(spec("banned", **options), 0.0)
    price.see([Measured(1.0, (), 0.3), Measured(0.0, (), 0.1), HIT, NOTHING])
    assert price.level == pytest.approx((0.3 + 0.1 + 1 + 0) / 4)


def test_windows_are_long_enough_for_two_violations_at_the_target() -> None:
    assert window_of(spec(target_rate=0.1)) == LEAST_WINDOW == window_of(spec(target_mean=0.001))
    assert window_of(spec(target_rate=0.001)) == 2000
    assert window_of(spec(target_rate=0.001, window_episodes=7)) == 7


@pytest.mark.parametrize("options", [{"target_rate": 0.01}, {"weight": 1.0, "warmup_episodes": 300}])
def test_state_survives_json_to_the_bit(options: dict[str, Any]) -> None:
    price, other = price_of(spec(**options), 0.0), price_of(spec(**options), 0.0)
    rng = np.random.default_rng(0)
    rounds = [hits(int(rng.integers(0, 5)), 48) for _ in range(12)]
    for each in rounds[:6]:
        price.update(each)
    other.load_state_dict(json.loads(json.dumps(price.state_dict())))
    for each in rounds[6:]:
        price.update(each)
        other.update(each)
    assert price.weight == other.weight and price.state_dict() == other.state_dict()


def test_a_multiplier_that_cannot_move_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie within"):
        Multiplier(0.1, window=9, initial=2.0, bounds=(0, 1))
    with pytest.raises(ValueError, match="logarithmic step above 0"):
        Multiplier(0.1, window=9, log=True)
    assert ScheduledPrice(1.0).weight == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the cost has no price"),
        ({"weight": 1.0, "target_rate": 0.1}, "two prices"),
        ({"weight": 1.0, "max_weight": 2.0}, "'max_weight' means nothing with 'weight'"),
        ({"target_rate": 0.1, "warmup_episodes": 5}, "'warmup_episodes' means nothing with 'target_rate'"),
        ({"weight": 1.0, "schedule": "linear"}, "which need it"),
        ({"weight": 1.0, "schedule_episodes": 5}, "belongs to"),
        ({"weight": 1.0, "start_weight": 0.5}, "belongs to"),
        ({"target_rate": 0.1, "initial_weight": 11.0}, "between 'min_weight' and 'max_weight'"),
        ({"target_rate": 0.1, "step": "log"}, "never leaves 0"),
        ({"target_rate": 0.1, "estimate": "expected"}, "is for banned and classifier"),
        ({"target_rate": 1.0}, "less than 1"),
        ({"target_mean": 0.0}, "greater than 0"),
        ({"weight": -1.0}, "greater than or equal to 0"),
    ],
)
def test_a_price_that_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**options)


def test_patterns_are_not_expected() -> None:
    with pytest.raises(ValidationError, match="how likely words are"):
        spec("banned", patterns=["x"], target_rate=0.1, estimate="expected")


# -- rare violations: docs/decisions/0022 ------------------------------------------------------------------------------

TARGET, BATCH, BATCHES, RUNS = 0.001, 16, 20, 100


def rises(rate: float, seed: int, *, variation: float | None = None, reference: int = 0) -> bool:
    """Whether the weight is above 0 after 20 batches of 16 completions.

    Args:
        rate: True share of violations.
        seed: Of the completions.
        variation: Standard deviation over mean of how likely completions are to violate; None where only what happened
            is known.
        reference: Completions of the reference seen before, at the same rate.
    """
    rng = np.random.default_rng(seed)
    spread = math.log(1 + (variation or 0) ** 2)

    def drawn(count: int) -> list[Measured]:
        likely = np.minimum(1, rate * np.exp(rng.normal(-spread / 2, math.sqrt(spread), count)))
        happened = rng.random(count) < likely
        return [
            Measured(float(hit), (), None if variation is None else float(chance))
            for hit, chance in zip(happened, likely, strict=True)
        ]

    options: dict[str, Any] = {"words": ["bad"], "target_rate": TARGET}
    if variation is not None:
        options["estimate"] = "expected"
    if reference:
        options["window_episodes"] = reference + BATCH * BATCHES
    price = price_of(spec("banned", **options), 0.0)
    price.see(drawn(reference))
    for _ in range(BATCHES):
        price.update(drawn(BATCH))
    return price.weight > 0


def share(rate: float, **known: Any) -> float:
    return sum(rises(rate, seed, **known) for seed in range(RUNS)) / RUNS


@pytest.mark.parametrize("variation", [1.0, 3.0, 5.0])
def test_a_rare_violation_is_seen_in_320_completions_by_how_likely_it_was(variation: float) -> None:
    assert share(0.002, variation=variation) >= 0.95
    assert share(0.0005, variation=variation) <= 0.05


def test_what_happened_alone_cannot_show_it_in_320_completions() -> None:
    """No rule can: in every second run nothing happens at all."""
    assert share(0.002) == pytest.approx(1 - 0.998**320, abs=0.15)
    assert share(0.0005) == pytest.approx(1 - 0.9995**320, abs=0.1)


def test_what_happened_shows_it_with_8192_completions_of_the_reference() -> None:
    assert share(0.002, reference=8192) >= 0.95
    assert share(0.0005, reference=8192) <= 0.08
