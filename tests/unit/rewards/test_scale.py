"""Rewards are brought to a common scale: numpy's mean and deviation, in pieces or at once, and terms that add up."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefopt.rewards.scale import SMALLEST_STD, RewardScale

SCORES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40)
ENDED = torch.tensor([True, True, False])


def of(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)


@given(SCORES, st.data())
def test_seen_in_pieces_is_seen_at_once(values: list[float], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(values) - 1))))
    scale = RewardScale("reference")
    for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        scale.see(of(values[start:end]))
    exact = numpy.array(values, dtype=numpy.float32).astype(numpy.float64)
    size = 1 + float(numpy.abs(exact).max())
    assert scale.mean == pytest.approx(exact.mean(), abs=1e-12 * size)
    assert scale.std == pytest.approx(max(exact.std(ddof=1), SMALLEST_STD), rel=1e-9, abs=1e-7 * size)


def test_a_large_mean_does_not_drown_a_small_deviation() -> None:
    scale, generator = RewardScale("reference"), torch.Generator().manual_seed(0)
    scores = 1e4 + torch.randn(1000, generator=generator)
    for piece in scores.split(17):
        scale.see(piece)
    assert scale.std == pytest.approx(float(scores.double().std()), rel=1e-9)


def test_reference_is_fixed_running_follows_and_none_does_nothing() -> None:
    first, second = of([1.0, 2.0, 3.0]), of([11.0, 12.0, 16.0])
    none, reference, running = RewardScale("none"), RewardScale("reference"), RewardScale("running")
    everyone = torch.ones(3, dtype=torch.bool)
    reference.see(first)
    none.see(first)
    assert torch.equal(none.terms(second, everyone).total, second)
    assert torch.allclose(reference.terms(second, everyone).total, (second - 2) / 1)
    assert torch.allclose(
        reference.terms(first, everyone).total, of([-1.0, 0.0, 1.0])
    )  # what came between is forgotten
    assert torch.allclose(running.terms(first, everyone).total, of([-1.0, 0.0, 1.0]))  # seen before it is scaled
    both = torch.cat([first, second])
    assert torch.allclose(running.terms(second, everyone).total, (second - both.mean()) / both.std(), atol=1e-6)


def test_the_unit_is_the_references_deviation_and_stays_it() -> None:
    first, second = of([1.0, 2.0, 3.0]), of([11.0, 12.0, 16.0])
    everyone = torch.ones(3, dtype=torch.bool)
    for normalise in ("none", "reference", "running"):
        scale = RewardScale(normalise)
        assert scale.unit == 1.0
        if normalise == "reference":
            scale.see(first)
        scale.terms(second if normalise == "reference" else first, everyone)
        scale.terms(second, everyone)
        assert scale.unit == pytest.approx(float(first.std(correction=int(normalise != "none"))))
        again = RewardScale(normalise)
        again.load_state_dict(scale.state_dict())
        assert again.unit == scale.unit


def test_one_score_or_equal_scores_are_not_blown_up() -> None:
    scale = RewardScale("running")
    assert scale.terms(of([7.0]), ENDED[:1]).total.tolist() == [0.0]
    assert scale.std == 1.0
    assert scale.terms(of([7.0]), ENDED[:1]).total.tolist() == [0.0]
    assert scale.std == SMALLEST_STD


def test_scaled_scores_are_cut_before_a_missing_end_is_paid_for() -> None:
    scale = RewardScale("reference", clip=1.5, missing_eos_penalty=2.0)
    scale.see(of([0.0, 2.0, 4.0]))
    terms = scale.terms(of([100.0, -100.0, -100.0]), ENDED)
    assert terms.score.tolist() == [1.5, -1.5, -1.5]
    assert terms.missing_eos.tolist() == [0.0, 0.0, -2.0]
    assert terms.total.tolist() == [1.5, -1.5, -3.5]


def test_what_a_missing_end_gets_replaces_the_score_or_is_taken_off() -> None:
    scores = of([3.0, -2.0, 5.0])
    assert RewardScale(missing_eos_penalty=1.0).terms(scores, ENDED).total.tolist() == [3.0, -2.0, 4.0]
    # The score that is given instead counts in scaled units, and the penalty does not come on top.
    instead = RewardScale(missing_eos_penalty=1.0, missing_eos_score=-1.0)
    assert instead.terms(scores, ENDED).total.tolist() == [3.0, -2.0, -1.0]
    assert instead.terms(scores, ENDED).score.tolist() == scores.tolist()


@given(SCORES, st.sampled_from(["none", "reference", "running"]), st.none() | st.floats(0.1, 5), st.booleans())
def test_terms_sum_to_the_reward(values: list[float], normalise, clip: float | None, instead: bool) -> None:
    scale = RewardScale(normalise, clip, 0.5, -1.0 if instead else None)
    scores = of(values)
    scale.see(scores)
    ended = torch.arange(len(values)) % 3 > 0
    terms = scale.terms(scores, ended)
    named = [terms.to_json(index) for index in range(len(values))]
    size = 1 + float(terms.score.abs().max())
    assert torch.tensor([sum(each.values()) for each in named]) == pytest.approx(terms.total, abs=1e-6 * size)
    assert not terms.missing_eos[ended].any()
    if clip is not None:
        assert float(terms.score.abs().max()) <= clip + 1e-6


@given(SCORES, SCORES)
def test_from_what_was_kept_it_goes_on_as_it_would_have(before: list[float], after: list[float]) -> None:
    whole, resumed = RewardScale("running"), RewardScale("running")
    whole.see(of(before))
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    ended = torch.ones(len(after), dtype=torch.bool)
    assert torch.equal(whole.terms(of(after), ended).total, resumed.terms(of(after), ended).total)
    assert (whole.mean, whole.std) == (resumed.mean, resumed.std)
