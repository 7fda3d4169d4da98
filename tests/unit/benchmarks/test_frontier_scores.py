"""The arithmetic of the frontier: gains at a KL, intervals, claims that hold together, the limit."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.frontier.estimates import Estimate, estimate, holm, jackknife, t_interval, without_each
from tests.learning.frontier.limit import joined, tilted, totals
from tests.learning.frontier.score import Gain, Point, chosen, gain_at, hull
from tests.learning.frontier.summary import Cell, against, cell, compared, verdict

BASE = Point(0.0, 1.0)
PATH = [BASE, Point(1.0, 3.0, trained=0.5), Point(4.0, 6.0, trained=1.0)]
values = st.floats(-50, 50, allow_nan=False).map(lambda value: round(value, 3))
paths = st.lists(st.tuples(st.integers(1, 80), values).map(lambda pair: Point(pair[0] / 10, pair[1])), max_size=12)


def value_at(path: list[Point], kl: float) -> float:
    gain = gain_at(path, kl)
    assert gain is not None
    return gain.value


def test_between_two_policies_the_gain_is_that_of_a_coin_flip() -> None:
    assert value_at(PATH, 1.0) == 2.0 and value_at(PATH, 4.0) == 5.0
    assert value_at(PATH, 2.5) == pytest.approx(3.5) and value_at(PATH, 0.25) == pytest.approx(0.5)
    assert gain_at(PATH, 4.1) is None and gain_at(PATH[:1], 0.1) is None


def test_an_end_just_beyond_the_kl_is_not_scored_as_if_nothing_had_been_trained() -> None:
    """A path that goes far and comes back to a KL a little above the one that is asked for, or a little below."""
    there = [BASE, Point(2.1, 5.0), Point(8.0, 9.0)]
    assert value_at([*there, Point(2.2, 7.0)], 2.0) == pytest.approx(6 * 2.0 / 2.2)
    assert value_at([*there, Point(1.9, 7.0)], 2.0) > 6.0


def test_every_kept_policy_counts_and_the_order_does_not() -> None:
    falling = [*PATH, Point(2.0, 1.5), Point(6.0, 5.0)]
    assert hull(falling) == [*PATH, Point(6.0, 5.0)]  # it may fall at the end, and nothing is foreseen beyond
    assert value_at(falling, 5.0) == pytest.approx(4.5)


@given(paths, st.integers(0, 80))
def test_the_hull_is_attained_and_lies_above_all_that_was_kept(kept: list[Point], tenths: int) -> None:
    path, kl = [BASE, *kept], tenths / 10
    found = gain_at(path, kl)
    assert (found is None) == (max(point.kl for point in path) < kl)
    if found is None:
        return
    shuffled = random.Random(0).sample(kept, len(kept))
    assert gain_at([BASE, *shuffled], kl) == found
    assert all(found.value >= point.reward - BASE.reward - 1e-9 for point in path if point.kl == kl)
    # The best of all coin flips between two policies with that mean KL, and no more.
    mixtures = [
        low.reward + (high.reward - low.reward) * (kl - low.kl) / (high.kl - low.kl)
        for low, high in itertools.product(path, path)
        if low.kl <= kl <= high.kl and low.kl < high.kl
    ]
    mixtures += [point.reward for point in path if point.kl == kl]
    assert found.value == pytest.approx(max(mixtures) - BASE.reward, abs=1e-9)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10, unique=True))
def test_a_concave_curve_is_read_exactly_at_its_points_and_never_above_it_between(kls: list[int]) -> None:
    path = [BASE, *(Point(float(kl), 1 + math.sqrt(kl)) for kl in sorted(kls))]
    assert hull(path) == path
    for point in path:
        assert value_at(path, point.kl) == point.reward - BASE.reward
    for before, after in itertools.pairwise(path):
        middle = (before.kl + after.kl) / 2
        assert value_at(path, middle) <= math.sqrt(middle) + 1e-12


def test_the_kl_of_a_coin_flip_is_at_most_the_mean_of_the_kls() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        base, one, two = torch.rand(3, 6, dtype=torch.double, generator=generator).softmax(1)
        weight = float(torch.rand(1, generator=generator))
        mixture = weight * one + (1 - weight) * two
        kls = [float((each * (each / base).log()).sum()) for each in (mixture, one, two)]
        assert kls[0] <= weight * kls[1] + (1 - weight) * kls[2] + 1e-12


def test_a_gain_says_whose_it_is_and_how_sure_it_is() -> None:
    path = [Point(0.0, 1.0, error=0.3), Point(1.0, 3.0, 0.2, 0.1, 0.4), Point(2.0, 4.0, 0.4, 0.3, 0.8)]
    middle = gain_at(path, 1.5)
    assert middle is not None and middle.trained == (0.4, 0.8)
    assert middle.error == pytest.approx(math.sqrt(0.3**2 + (1.0 * 0.2) ** 2 + 0.3**2))  # rewards, KLs, base
    last = gain_at(path, 2.0)
    assert last is not None and last.trained == (0.8, 0.8)
    assert gain_at([BASE, path[1]], 1.0) == Gain(2.0, math.hypot(0.2, 2.0 * 0.1), (0.4, 0.4), [])


def measured_on(rewards: torch.Tensor, kls: torch.Tensor, size: int) -> Point:
    """A policy that was measured on openings, in blocks of a size."""
    blocks = [[float(part.mean()) for part in each.split(size)] for each in (kls, rewards)]
    without = list(zip(*map(without_each, blocks), strict=True))
    return Point(float(kls.mean()), float(rewards.mean()), without=without)


@pytest.mark.parametrize("size", [1, 8])
def test_the_error_of_the_measuring_is_that_of_other_openings(size: int) -> None:
    """Gains of a run at a KL, drawn anew with other openings, spread by what the blocks of one draw say."""
    draws = torch.Generator().manual_seed(3)
    gains, errors = [], []
    for _ in range(200):
        easy = torch.randn(96, generator=draws, dtype=torch.float64)  # what an opening is worth, to all policies
        noise = torch.randn(4, 96, generator=draws, dtype=torch.float64)
        base = measured_on(1 + easy, torch.zeros(96).double(), size)
        near = measured_on(3 + easy + 2 * noise[0], 1 + 0.2 * noise[1], size)
        far = measured_on(4 + easy + 2 * noise[2], 3 + 0.5 * noise[3], size)
        gain = gain_at([base, near, far], 2.0)
        assert gain is not None
        gains.append(gain.value)
        errors.append(cell("a", [[base, near, far]], 2.0).shared.error)
    spread = float(torch.tensor(gains).std())
    assert spread == pytest.approx(sum(errors) / len(errors), rel=0.15)
    assert spread < 0.2  # easy openings cancel: with them it would be 0.1 more


def test_the_error_of_a_mean_is_that_of_its_values_without_each() -> None:
    numbers = [1.0, 2.0, 6.0, 3.0]
    assert without_each(numbers) == pytest.approx([11 / 3, 10 / 3, 2.0, 3.0]) and without_each([1.0]) == []
    assert jackknife(without_each(numbers)) == pytest.approx(float(torch.tensor(numbers).std()) / 2)


def test_the_setting_is_the_best_of_those_that_got_there() -> None:
    runs = {"near": PATH[:2], "far": PATH, "best": [BASE, Point(4.0, 20.0)]}
    assert chosen(runs, 1.0) == "best" and chosen(runs, 9.0) is None
    assert chosen({"near": PATH[:2]}, 2.0) is None


def test_the_interval_of_a_few_runs_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.estimate == 3.0
    assert found.high - 3.0 == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    with pytest.raises(ValueError, match="two runs"):
        t_interval([1.0])


def test_an_error_that_runs_share_does_not_shrink_with_their_number() -> None:
    alike = estimate([2.0] * 5, 0.1)
    assert alike.interval.high - 2.0 == pytest.approx(1.96 * 0.1, rel=1e-3)
    both = estimate([1.0, 2.0, 3.0, 4.0, 5.0], 0.5)
    assert both.error == pytest.approx(math.sqrt(0.5 + 0.25))
    assert both.freedom == pytest.approx(4 * (0.75 / 0.5) ** 2)
    few = estimate([1.0, 2.0, 3.0, 4.0, 5.0], 0.5, 31)
    assert few.freedom == pytest.approx(0.75**2 / (0.5**2 / 4 + 0.25**2 / 31)) and few.chance > both.chance


def test_an_estimates_chance_is_that_of_a_one_sided_test() -> None:
    assert Estimate(0.0, 1.0, 4.0).chance == pytest.approx(0.5)
    assert Estimate(2.7764, 1.0, 4.0).chance == pytest.approx(0.025, rel=1e-4)
    assert estimate([1.0, 1.0]).chance == 0.0 and estimate([-1.0, -1.0]).chance == 1.0


def test_claims_hold_together_by_holms_method() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, 0.05) == {"a", "d"}
    assert holm({"a": 0.02}) == {"a"} and holm({"a": 0.02, "b": 0.9}) == set()
    assert holm({"a": 0.5, "b": 0.0}) == {"b"} and holm({}) == set()


def of(*gains: float | None) -> Cell:
    return Cell("a", [None if value is None else Gain(value) for value in gains])


def test_a_cell_is_of_the_seeds_that_reached_the_kl() -> None:
    limit = Gain(10.0, 0.0)
    both = cell("a", [PATH, PATH], 1.0)
    share = both.share(limit)
    assert share is not None and share.mean == pytest.approx(0.2) and share.error == 0
    partly = cell("a", [PATH, PATH[:2], PATH], 4.0)
    assert len(partly.reached) == 2 and partly.gain is not None and partly.gain.mean == 5.0
    assert partly.trained == (1.0, 1.0) and partly.there.gain is None
    assert cell("a", [PATH, PATH[:2]], 4.0).gain is None and Cell(None, []).gain is None


def test_the_share_has_the_errors_of_the_measuring_and_of_the_limit() -> None:
    each = Cell("a", [Gain(4.0, without=[3.6, 4.4]), Gain(6.0, without=[5.8, 6.2])])
    share = each.share(Gain(10.0, 0.8))
    assert each.shared.error == pytest.approx(0.3)  # of the means over seeds, 4.7 and 5.3
    assert share is not None and share.mean == pytest.approx(0.5)
    assert share.error == pytest.approx(math.sqrt(0.1**2 + (0.3**2 + (0.5 * 0.8) ** 2) / 10**2))


def test_methods_are_compared_by_the_seeds_that_both_reached() -> None:
    ours, other = of(3.0, 5.0, 7.0, None), of(2.0, 4.1, 5.9, 0.0)
    found = compared(ours, other)
    assert found is not None and found.pairs == 3 and found.difference.mean == pytest.approx(1.0)
    assert verdict(found.difference, True) == "above"
    assert verdict(found.difference, False) == "above alone, not with Holm"
    backward, alike = compared(other, ours), compared(ours, of(3.5, 4.0, 7.5, 1.0))
    assert backward is not None and verdict(backward.difference, False) == "below"
    assert alike is not None and verdict(alike.difference, False) == "not told apart"
    assert compared(ours, of(1.0, None, None, 1.0)) is None


def test_a_difference_has_the_error_of_the_openings_as_far_as_it_does_not_cancel() -> None:
    ours = Cell("a", [Gain(4.0, without=[3.0, 5.0]), Gain(6.0, without=[5.0, 7.0])])
    moved, still = Cell("b", [Gain(3.0, without=[2.0, 4.0])] * 2), Cell("b", [Gain(3.0, without=[3.0, 3.0])] * 2)
    found, apart = compared(ours, moved), compared(ours, still)
    assert found is not None and apart is not None
    assert found.difference.error == pytest.approx(1.0)  # of the seeds alone: both move alike
    assert apart.difference.error == pytest.approx(math.hypot(1.0, 1.0))


def test_what_has_no_seeds_is_compared_with_both_errors() -> None:
    ours = Cell("a", [Gain(4.0, without=[3.7, 4.3]), Gain(6.0, without=[5.7, 6.3]), None])
    found = against(ours, Gain(4.5, 0.4))
    assert found is not None and found.pairs == 2
    assert found.difference.mean == pytest.approx(0.5)
    assert found.difference.error == pytest.approx(math.sqrt(1.0 + 0.3**2 + 0.4**2))
    assert against(of(1.0, None), Gain(1.0)) is None


def test_the_limit_is_that_of_a_model_whose_completions_can_be_counted() -> None:
    base = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    rewards = torch.tensor([0.0, 1.0, 3.0], dtype=torch.double)
    other = torch.tensor([0.1, 0.2, 0.7], dtype=torch.double)  # samples come from here, each as often as is likely
    drawn = torch.repeat_interleave(torch.arange(3), (other * 1000).long())
    log_weights = (base / other).log()[drawn]
    for tilt in (0.0, 0.7, 2.0):
        weights = base * torch.exp(tilt * rewards)
        best = weights / weights.sum()
        reward, kl, effective = tilted(rewards[drawn][None], log_weights[None], tilt)
        assert float(reward) == pytest.approx(float((best * rewards).sum()), abs=1e-9)
        assert float(kl) == pytest.approx(float((best * (best / base).log()).sum()), abs=1e-9)
        assert 1 <= float(effective) <= 1000


def test_parts_of_the_prompts_make_the_means_of_all() -> None:
    reward, kl = torch.randn(2, 10, dtype=torch.double, generator=torch.Generator().manual_seed(0)).unbind()
    parts = [
        [
            {"tilt": 0.5} | totals({"reward": reward[rows], "kl": kl[rows], "few": (kl[rows] < 0).double()}),
            {"n": 3, "kl": 0.4} | totals({"reward": kl[rows]}),
        ]
        for rows in (slice(0, 3), slice(3, 10))
    ]
    tilt, best = joined(parts)
    assert tilt["tilt"] == 0.5 and tilt["kl"] == pytest.approx(float(kl.mean()), abs=1e-12)
    assert tilt["reward"] == pytest.approx(float(reward.mean()), abs=1e-12)
    assert tilt["reward_se"] == pytest.approx(float(reward.std()) / math.sqrt(10), rel=1e-9)
    assert tilt["few"] == pytest.approx(float((kl < 0).double().mean()))
    assert best["n"] == 3 and best["kl"] == 0.4 and best["reward"] == pytest.approx(float(kl.mean()), abs=1e-12)
