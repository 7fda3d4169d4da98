"""Guards speak up when a limit has been passed for long enough, not before, and know the best policy."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.trainers.guards import SMOOTHING, GuardLimits, Guards, Health

WELL = Health(kl=0.0, entropy=2.0, eos_rate=0.8, length=20.0, repetition=0.1, score=1.0, disagreement=0.5, bound=0.5)
NOTHING = GuardLimits(min_entropy=None, min_eos_rate=None, max_repetition=None)
# Limit, what is still healthy, what is not.
CASES = {
    "max_kl": (5.0, {"kl": 5.0}, {"kl": 5.01}),
    "min_entropy": (0.5, {"entropy": 1.0}, {"entropy": 0.99}),
    "min_eos_rate": (0.5, {"eos_rate": 0.4}, {"eos_rate": 0.39}),
    "max_length": (2.0, {"length": 40.0}, {"length": 40.1}),
    "max_repetition": (0.3, {"repetition": 0.4}, {"repetition": 0.41}),
    "max_disagreement": (3.0, {"disagreement": 1.5}, {"disagreement": 1.6}),
}


def watched(limits: GuardLimits, *seen: Health) -> Guards:
    guards = Guards(limits)
    for number, health in enumerate(seen):
        guards.see(number, health)
    return guards


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("patience", [1, 3])
def test_a_limit_must_be_passed_for_patience_rollouts_in_a_row_but_the_kl_at_once(name: str, patience: int) -> None:
    limit, well, ill = CASES[name]
    limits = replace(NOTHING, **{name: limit}, patience=patience)
    needed = 1 if name == "max_kl" else patience
    good, bad = replace(WELL, **well), replace(WELL, **ill)
    assert watched(limits, WELL, *[good] * 20).reason is None
    assert watched(limits, WELL, *[bad] * (needed - 1)).reason is None
    spoken = watched(limits, WELL, *[bad] * needed)
    assert f"at rollout {needed}" in spoken.reason
    assert name.split("_", 1)[1] in spoken.reason
    assert watched(limits, WELL, *[bad] * needed, *[good] * 3).reason == spoken.reason  # it does not take it back
    assert watched(replace(limits, **{name: None}), WELL, *[bad] * 20).reason is None


@pytest.mark.parametrize("name", [name for name in CASES if name != "max_kl"])
def test_one_healthy_rollout_begins_the_count_anew(name: str) -> None:
    limit, well, ill = CASES[name]
    limits = replace(NOTHING, **{name: limit}, patience=3)
    good, bad = replace(WELL, **well), replace(WELL, **ill)
    assert watched(limits, WELL, *[bad, bad, good] * 5).reason is None
    assert watched(limits, WELL, bad, bad, good, bad, bad, bad).reason.endswith("at rollout 6")


def test_limits_are_counted_apart() -> None:
    limits = replace(NOTHING, max_length=2.0, max_repetition=0.3, patience=2)
    long, repeated = replace(WELL, length=50.0), replace(WELL, repetition=0.9)
    assert watched(limits, WELL, *[long, repeated] * 5).reason is None


@pytest.mark.parametrize("voucher", ["bound", "judge"])
def test_doubt_is_a_reward_that_holds_up_while_what_vouches_for_it_falls(voucher: str) -> None:
    limits = replace(NOTHING, max_doubt=0.5, patience=2)
    start = replace(WELL, judge=1.0) if voucher == "judge" else WELL

    def at(score: float, vouched: float) -> Health:
        return replace(start, score=score, **{voucher: vouched})

    hacked = [at(1.0 + step, 0.5 - step) for step in range(6)]
    assert voucher in watched(limits, start, *hacked).reason
    both_fall = [at(1.0 - step, 0.5 - step) for step in range(6)]
    assert watched(limits, start, *both_fall).reason is None
    both_rise = [at(1.0 + step, 1.0 + step) for step in range(6)]
    assert watched(limits, start, *both_rise).reason is None
    little = [at(1.0 + step, getattr(start, voucher) - 0.4) for step in range(6)]
    assert watched(limits, start, *little).reason is None


def test_where_there_is_a_judge_the_bound_raises_no_doubt() -> None:
    limits = replace(NOTHING, max_doubt=0.5, patience=1)
    seen = [replace(WELL, score=1.0 + n, bound=0.5 - n, judge=1.0 + n) for n in range(8)]
    assert watched(limits, *seen).reason is None
    assert watched(limits, *[replace(each, judge=None) for each in seen]).reason is not None


def test_without_a_voucher_there_is_no_doubt_and_no_selection() -> None:
    alone = replace(WELL, bound=None)
    guards = Guards(replace(NOTHING, max_doubt=0.1, patience=1), "bound")
    assert not any(guards.see(n, replace(alone, score=float(n))) for n in range(5))
    assert guards.reason is None and guards.best is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.sampled_from(["bound", "judge"]))
def test_the_policy_that_is_kept_has_the_highest_moving_average(values: list[float], select) -> None:
    """Of the bound; a judge's word counts as it is."""
    guards, average, averages = Guards(NOTHING, select), values[0], []
    marked, weight = None, SMOOTHING if select == "bound" else 0.0
    for number, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        averages.append(average)
        if guards.see(number, replace(WELL, **{select: value})):
            marked = number
    assert guards.best == marked == max(range(len(values)), key=averages.__getitem__)


def test_by_default_the_last_policy_is_kept_that_passed_no_limit() -> None:
    guards = Guards(replace(NOTHING, max_length=2.0, patience=3))
    lengths = [10.0, 12.0, 50.0, 12.0, 50.0, 50.0, 50.0]
    remembered = [n for n, length in enumerate(lengths) if guards.see(n, replace(WELL, length=length))]
    assert remembered == [0, 1, 3] and guards.best == 3 and guards.reason.endswith("at rollout 6")


def test_a_rollout_without_a_question_to_the_judge_is_not_the_judges_choice() -> None:
    """The judge is asked now and then; what it said of one policy says nothing of the next."""
    guards = Guards(NOTHING, "judge")
    asked = {0: 0.5, 4: 0.7, 8: 0.69}
    kept = [number for number in range(10) if guards.see(number, replace(WELL, judge=asked.get(number)))]
    assert kept == [0, 4] and guards.best == 4


def test_patience_of_doubt_counts_what_the_judge_said_and_not_how_often_it_is_remembered() -> None:
    limits = replace(NOTHING, max_doubt=0.5, patience=2)
    asked = {0: 5.0, 4: -5.0, 8: -5.0}
    seen = [replace(WELL, score=1.0 + n, bound=1.0 + n, judge=asked.get(n)) for n in range(12)]
    assert watched(limits, *seen[:8]).reason is None
    assert watched(limits, *seen).reason.endswith("at rollout 8")


HEALTHS = st.builds(
    Health,
    kl=st.floats(-1, 12),
    entropy=st.floats(0, 4),
    eos_rate=st.floats(0, 1),
    length=st.floats(1, 64),
    repetition=st.floats(0, 1),
    score=st.floats(-4, 8),
    disagreement=st.floats(0, 3),
    bound=st.none() | st.floats(-4, 8),
    judge=st.none() | st.floats(-4, 8),
)
STRICT = GuardLimits(10.0, 0.2, 0.5, 2.0, 0.3, 3.0, 0.5, 2)


@given(st.lists(HEALTHS, min_size=1, max_size=25), st.data(), st.sampled_from(["last", "bound", "judge"]))
def test_split_anywhere_it_decides_as_if_it_had_not_been(seen: list[Health], data: st.DataObject, select) -> None:
    cut = data.draw(st.integers(0, len(seen)))
    whole, parts = Guards(STRICT, select), Guards(STRICT, select)
    for number, health in enumerate(seen):
        if number == cut:
            kept = json.dumps(parts.state_dict())
            parts = Guards(STRICT, select)
            parts.load_state_dict(json.loads(kept))
        assert whole.see(number, health) == parts.see(number, health)
        assert (whole.reason, whole.best) == (parts.reason, parts.best)
    assert whole.state_dict() == parts.state_dict()


def test_what_was_kept_does_not_change_afterwards() -> None:
    guards = watched(STRICT, WELL)
    kept = guards.state_dict()
    before = json.dumps(kept)
    guards.see(1, replace(WELL, kl=100.0))
    assert json.dumps(kept) == before


@given(st.lists(HEALTHS, min_size=2, max_size=25))
def test_it_never_takes_back_what_it_said(seen: list[Health]) -> None:
    guards, reasons = Guards(STRICT), []
    for number, health in enumerate(seen):
        guards.see(number, health)
        reasons.append(guards.reason)
    assert all(later == earlier for earlier, later in pairwise(reasons) if earlier is not None)
