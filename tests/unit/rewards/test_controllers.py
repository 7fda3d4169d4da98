"""The price of the KL follows its target as arXiv 1909.08593, section 2.2, says."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.rewards.controllers import KLController


def controller(coefficient: float = 0.15, target: float | None = 6.0, horizon: int = 10_000, **more) -> KLController:
    return KLController(coefficient, target, horizon, **more)


def test_without_a_target_the_price_is_fixed_even_outside_the_bounds() -> None:
    fixed = controller(0.0, None)
    for kl in (0.0, 100.0, -3.0):
        fixed.update(kl, 512)
    assert fixed.coefficient == 0.0


def test_at_the_target_the_price_stays() -> None:
    followed = controller()
    for _ in range(100):
        followed.update(6.0, 512)
    assert followed.coefficient == 0.15


@given(st.floats(-50, 200), st.integers(1, 5000))
def test_it_rises_above_the_target_and_falls_below_it_and_no_error_counts_for_more_than_a_fifth(kl, episodes) -> None:
    followed = controller()
    followed.update(kl, episodes)
    factor = followed.coefficient / 0.15
    assert (factor > 1) == (kl / 6 - 1 > 0) or math.isclose(factor, 1, abs_tol=1e-9)
    error = min(max(kl / 6 - 1, -0.2), 0.2)
    assert factor == pytest.approx(1 + error * episodes / 10_000)
    most = controller()
    most.update(1e9, episodes)
    assert followed.coefficient <= most.coefficient


@pytest.mark.parametrize(("episodes", "horizon", "expected"), [(256, 10_000, 451), (512, 10_000, 227), (128, 1000, 92)])
def test_ten_times_the_price_needs_as_many_rollouts_as_the_formula_says(episodes, horizon, expected) -> None:
    followed, updates = controller(0.01, horizon=horizon), 0
    while followed.coefficient < 0.1:
        followed.update(1e3, episodes)
        updates += 1
    assert updates == math.ceil(math.log(10) / math.log(1 + 0.2 * episodes / horizon)) == expected


def test_it_stays_within_its_bounds_and_comes_back_from_them() -> None:
    followed = controller(0.15, horizon=100, bounds=(0.1, 0.3))
    for _ in range(50):
        followed.update(100.0, 100)
    assert followed.coefficient == 0.3
    followed.update(0.0, 100)
    assert followed.coefficient == pytest.approx(0.3 * 0.8)
    for _ in range(50):
        followed.update(0.0, 100)
    assert followed.coefficient == 0.1


def test_bounds_that_are_none_are_refused() -> None:
    for bounds in ((2.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="bounds"):
            controller(bounds=bounds)


def test_a_rollout_of_many_horizons_does_not_turn_the_price_negative() -> None:
    followed = controller(horizon=10)
    followed.update(0.0, 512)  # 1 - 0.2 · 51.2 < 0
    assert followed.coefficient == 1e-4


@pytest.mark.parametrize("start", [0.01, 0.15, 5.0])
@pytest.mark.parametrize("plant", [0.05, 0.6, 3.0])
def test_a_policy_whose_kl_is_inverse_to_the_price_ends_at_the_target(start: float, plant: float) -> None:
    followed = controller(start, horizon=2000)
    for _ in range(2000):
        followed.update(plant / followed.coefficient, 128)
    assert plant / followed.coefficient == pytest.approx(6.0, rel=1e-6)


def test_from_what_was_kept_it_goes_on() -> None:
    whole, resumed = controller(), controller(9.0)
    for kl in (3.0, 8.0):
        whole.update(kl, 300)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for kl in (1.0, 20.0):
        whole.update(kl, 300)
        resumed.update(kl, 300)
    assert whole.coefficient == resumed.coefficient != 0.15
