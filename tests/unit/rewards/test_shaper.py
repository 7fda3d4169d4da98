"""The shaper: terms that add up, an order that holds, raw scores that stay, and prices that move in training alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from prefopt.errors import DataError, InputError
from prefopt.losses.ppo import masked_whiten
from prefopt.recipe.options.penalties import Penalties
from prefopt.records import Message, Score
from prefopt.rewards import ShapedReward, Shaper
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.costs.sample import Sample
from prefopt.rewards.penalties import Penalty
from prefopt.rewards.scale import Bound, RewardScale, deviation, par
from prefopt.tracking.metrics import describe

PROMPT = (Message("user", "Say something."),)
TEXTS = ("a bad lamp", "a lamp", "bad bad bad bad lamp", "")
SCORES = torch.tensor([1.5, -0.25, 3.0, 0.1])
ENDED = torch.tensor([True, True, False, True])


def penalties(*options: dict[str, Any]) -> list[Penalty]:
    return [Penalty.of(spec, rule_cost(spec)) for spec in TypeAdapter(Penalties).validate_python(list(options))]


def samples(texts: tuple[str, ...] = TEXTS) -> list[Sample]:
    return [Sample(PROMPT, text, tuple(range(len(text.split())))) for text in texts]


BANNED = {"cost": "banned", "words": ["bad"], "saturation": 4}
LENGTH = {"cost": "length", "limit": 2, "unit": "words"}


def shape(shaper: Shaper, scores: torch.Tensor = SCORES, stds: torch.Tensor | None = None) -> ShapedReward:
    return shaper.shape(scores, torch.zeros(len(scores)) if stds is None else stds, ENDED[: len(scores)], samples())


def test_terms_are_weights_times_costs_and_sum_to_the_total() -> None:
    shaper = Shaper(penalties({**BANNED, "weight": 2.0}, {**LENGTH, "weight": 0.5}), scale=RewardScale(unit=1.0))
    shaped = shape(shaper)
    assert shaped.terms["banned"].tolist() == [-0.5, 0, -2, 0]
    assert shaped.terms["length"].tolist() == [-0.25, 0, -0.75, 0]
    assert torch.equal(shaped.raw, SCORES)
    assert torch.allclose(shaped.total, sum(shaped.terms.values()))
    assert list(shaped) == pytest.approx([0.75, -0.25, 0.25, 0.1]) and len(shaped) == 4 and shaped[1] == -0.25
    assert shaped.violated == {"banned": 0.5, "length": 0.5} and shaped.weights == {"banned": 2.0, "length": 0.5}
    found = shaped.metrics()
    assert found["penalty/banned/rate"] == 0.5 and found["penalty/banned/cost"] == pytest.approx(1.25 / 4)
    assert found["penalty/banned/term"] == pytest.approx(-2.5 / 4) and found["penalty/banned/weight"] == 2
    assert shaped.costs_of(0) == {
        "terms": {"score": 1.5, "missing_eos": 0.0, "banned": -0.5, "length": -0.25},
        "costs": {"banned": 0.25, "length": 0.5},
        "spans": {"banned": [[2, 5]], "length": [[6, 10]]},
    }


def test_what_is_owed_is_what_rules_take_off_and_no_end_is_missing_yet() -> None:
    priced = penalties({**BANNED, "weight": 2.0}, {**LENGTH, "weight": 0.5}, {"cost": "missing_eos", "weight": 9.0})
    shaper = Shaper(priced, scale=RewardScale(unit=1.0))
    shaped, owed = shape(shaper), shaper.owed(samples())
    assert owed == pytest.approx((-shaped.terms["banned"] - shaped.terms["length"]).tolist())
    assert Shaper().owed(samples()) == [0.0] * len(TEXTS)


def test_weights_are_in_deviations_of_the_references_rewards() -> None:
    reference = torch.tensor([10.0, 14.0, 18.0, 30.0])
    for normalise in ("reference", "none", "running", "batch"):
        scale = RewardScale(normalise)
        if normalise in ("reference", "running"):
            scale.see(reference)
        shaper = Shaper(penalties({**BANNED, "weight": 2.0}), scale=scale)
        first = shape(shaper, reference)
        in_raw_units = first.terms["banned"] * scale.std
        unit = deviation(reference) if normalise == "none" else float(reference.double().std())
        unit = scale.unit if normalise == "running" else unit  # that of all scores when the first were scaled
        assert in_raw_units[0] == pytest.approx(-0.5 * unit, rel=1e-5), normalise


@pytest.mark.parametrize("normalise", ["none", "reference", "running"])
def test_free_costs_change_no_bit(normalise: str) -> None:
    torch.manual_seed(0)
    scores, ended = torch.randn(64), torch.rand(64) < 0.8
    plain, shaped = RewardScale(normalise, 2.0, 0.3), RewardScale(normalise, 2.0, 0.3)
    for scale in (plain, shaped):
        scale.see(torch.randn(100, generator=torch.Generator().manual_seed(1)))
    shaper = Shaper(
        penalties({**BANNED, "weight": 0.0}, {**LENGTH, "target_rate": 0.9}),
        scale=shaped,
    )
    texts = [Sample(PROMPT, "a bad bad lamp", finished=False)] * 64
    total = shaper.shape(scores, torch.zeros(64), ended, texts).total
    expected = plain.terms(scores, ended).total
    assert total.numpy().tobytes() == expected.numpy().tobytes()
    assert Shaper(scale=plain).shape(scores, torch.zeros(64), ended, texts).measured == {}


@given(st.floats(-50, 50))
def test_a_constant_on_every_score_leaves_whitened_advantages(constant: float) -> None:
    found = []
    for scores in (SCORES.double(), SCORES.double() + constant):
        scale = RewardScale("batch")
        shaper = Shaper(penalties({**BANNED, "weight": 1.0}), scale=scale)
        total = shape(shaper, scores).total.double()
        found.append(masked_whiten(total[None], torch.ones(1, 4)))
    assert torch.allclose(found[0], found[1], atol=1e-4)


@given(st.integers(0, 6), st.floats(0, 5), st.floats(0, 5))
def test_more_violation_or_more_weight_is_never_more_reward(hits: int, weight: float, more: float) -> None:
    def total(count: int, price: float) -> float:
        shaper = Shaper(penalties({**BANNED, "weight": price}), scale=RewardScale(unit=1.0))
        text = Sample(PROMPT, "bad " * count)
        return float(shaper.shape(torch.ones(1), torch.zeros(1), torch.ones(1).bool(), [text]).total[0])

    assert total(hits + 1, weight) <= total(hits, weight)
    assert total(hits, weight + more) <= total(hits, weight)


def test_the_order_is_normalise_bound_penalties_clip() -> None:
    scale = RewardScale("reference", bound=Bound("sigmoid"))
    scale.see(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    shaper = Shaper(penalties({**BANNED, "weight": 3.0}), scale=scale, total_clip=0.3)
    shaped = shape(shaper)
    z = (SCORES - 1.5) / scale.std
    assert torch.allclose(shaped.terms["score"], torch.sigmoid(z))
    unit = deviation(torch.sigmoid((torch.tensor([0.0, 1, 2, 3]) - 1.5) / scale.std))
    assert torch.allclose(shaped.terms["banned"], -3 * unit * torch.tensor([0.25, 0, 1, 0]))
    uncut = shaped.terms["score"] + shaped.terms["banned"]
    assert torch.allclose(shaped.total, uncut.clamp(-0.3, 0.3)) and float(shaped.terms["clip"].abs().max()) > 0
    assert torch.allclose(sum(shaped.terms.values()), shaped.total)


# -- PAR ---------------------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)


@given(NUMBERS, NUMBERS)
def test_par_is_a_soft_win_rate(scores: list[float], references: list[float]) -> None:
    ours, theirs = torch.tensor(scores).double(), torch.tensor(references).double()
    found = par(ours, theirs, 0.5)
    assert ((found > 0) & (found < 1)).all()
    order = ours.argsort()
    assert (found[order].diff() >= -1e-12).all()
    assert torch.allclose(par(theirs, theirs[:, None].expand(-1, 3)), torch.full_like(theirs, 0.5))
    won = (ours[:, None] > theirs).double() + 0.5 * (ours[:, None] == theirs).double()
    apart = (ours[:, None] - theirs).abs()
    if bool(((apart == 0) | (apart > 1e-3)).all()):
        assert torch.allclose(par(ours, theirs, 1e6), won.mean(1), atol=1e-6)


def test_par_compares_with_the_references_own_scores() -> None:
    scale = RewardScale("reference", bound=Bound("par", 2.0))
    references = torch.tensor([0.0, 1.0, 5.0])
    scale.see(references)
    scores = torch.tensor([0.0, 4.0])
    found = scale.terms(scores, torch.ones(2).bool()).score
    assert torch.allclose(found, par(scores.double(), references.double(), 2 / scale.std).float())
    again = RewardScale("reference", bound=Bound("par", 2.0))
    again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert torch.equal(again.terms(scores, torch.ones(2).bool()).score, found) and again.price_unit == scale.price_unit


def test_a_missing_end_costs_deviations_of_a_bounded_reward() -> None:
    scale = RewardScale("reference", missing_eos_penalty=2.0, bound=Bound("sigmoid"))
    scale.see(SCORES)
    found = scale.terms(SCORES, ENDED)
    assert found.missing_eos.tolist() == pytest.approx([0, 0, -2 * deviation(found.score), 0])


def test_bounds_that_do_not_go_together_are_refused() -> None:
    for options in ({"normalise": "none", "bound": Bound("par")}, {"clip": 1.0, "bound": Bound("sigmoid")}):
        with pytest.raises(ValueError, match="does not go with"):
            RewardScale(**options)


# -- prices ------------------------------------------------------------------------------------------------------------


def test_prices_move_after_a_rollout_and_see_the_reference_before() -> None:
    shaper = Shaper(penalties({**BANNED, "target_rate": 0.1}), scale=RewardScale("reference"))
    price = shaper.penalties[0].price
    shaper.see(SCORES, torch.zeros(4), samples())
    assert price.weight == 0 and price.level == 0.5
    first = shape(shaper)
    assert first.weights["banned"] == 0 and price.weight == 0
    shaper.update(first, learning=False)
    assert price.weight == 0
    shaper.update(first)
    assert price.weight > 0
    assert shape(shaper).weights["banned"] == price.weight
    other = Shaper(penalties({**BANNED, "target_rate": 0.1}))
    other.load_state_dict(json.loads(json.dumps(shaper.state_dict())))
    assert other.penalties[0].price.weight == price.weight and other.state_dict() == shaper.state_dict()


def test_disagreement_is_in_deviations_of_the_reference_and_needs_an_ensemble() -> None:
    scale = RewardScale("reference")
    scale.see(SCORES)
    shaper = Shaper(penalties({"cost": "ensemble_std", "weight": 0.5}), scale=scale)
    stds = torch.tensor([0.0, 1.0, 2.0, 0.5])
    assert torch.allclose(shape(shaper, stds=stds).terms["ensemble_std"], -0.5 * stds / scale.std)
    with pytest.raises(InputError, match="the reward is none"):
        shape(shaper)


def test_names_tell_penalties_apart() -> None:
    twice = [*penalties({**BANNED, "weight": 1.0}), *penalties({**BANNED, "weight": 1.0})]
    with pytest.raises(ValueError, match="names of their own"):
        Shaper(twice)
    with pytest.raises(ValueError, match="two costs are called 'banned'"):
        penalties({**BANNED, "weight": 1.0}, {**BANNED, "weight": 2.0})
    with pytest.raises(ValueError, match="another term"):
        penalties({**BANNED, "weight": 1.0, "name": "score"})
    shaper = Shaper(penalties({**BANNED, "weight": 1.0}, {**BANNED, "weight": 2.0, "name": "worse"}))
    assert set(shape(shaper).terms) == {"score", "missing_eos", "banned", "worse"}


@pytest.mark.parametrize("taken", ["score", "kl", "total", "clip", "missing_eos"])
def test_no_penalty_takes_the_name_of_another_term(taken: str) -> None:
    """Its term would be lost, or be in the other's place."""
    with pytest.raises(ValueError, match="another term"):
        penalties({**BANNED, "weight": 1.0, "name": taken})
    ((cost),) = penalties({**BANNED, "weight": 1.0})
    cost.cost.label = taken
    with pytest.raises(ValueError, match="names of their own"):
        Shaper([cost])


def test_a_missing_end_is_paid_once() -> None:
    ends = penalties({"cost": "missing_eos", "weight": 2.0})
    for scale in (RewardScale(missing_eos_penalty=1.0, unit=1.0), RewardScale(missing_eos_score=-1.0, unit=1.0)):
        with pytest.raises(ValueError, match="paid twice"):
            Shaper(ends, scale=scale)
    shaped = Shaper(ends, scale=RewardScale(unit=1.0)).shape(SCORES, torch.zeros(4), ENDED, unfinished())
    assert shaped.terms["missing_eos"].tolist() == [0, 0, -2, 0]
    assert torch.allclose(shaped.total, sum(shaped.terms.values()))


def unfinished() -> list[Sample]:
    return [Sample(PROMPT, text, (1,), bool(ended)) for text, ended in zip(TEXTS, ENDED, strict=True)]


@pytest.mark.parametrize("bound", [None, Bound("sigmoid"), Bound("par")])
def test_scores_are_not_normalised_by_a_reference_that_nobody_saw(bound: Bound | None) -> None:
    shaper = Shaper(scale=RewardScale("reference", bound=bound), score=lambda prompts, texts: [1.0] * len(texts))
    with pytest.raises(InputError, match="none were seen"):
        shaper(["Say something."], ["a lamp"])
    shaper.see(SCORES, torch.zeros(4), samples())
    assert torch.isfinite(shaper(["Say something."], ["a lamp"]).total).all()


def test_metrics_have_every_term_rate_and_weight() -> None:
    learned = {**LENGTH, "name": "long", "target_rate": 0.1, "window_episodes": 8}
    shaper = Shaper(
        penalties({**BANNED, "weight": 2.0}, learned),
        scale=RewardScale(missing_eos_penalty=1.0, unit=1.0),
        total_clip=0.7,
    )
    first = shape(shaper)
    assert "penalty/long/level" not in first.metrics()  # of nothing
    shaper.update(first)
    found = shape(shaper).metrics()
    assert found["penalty/long/level"] == pytest.approx(shaper.penalties[1].price.level) == 0.5
    parts = [found[f"shaped/{name}"] for name in ("score", "missing_eos", "clip")]
    parts += [found[f"penalty/{name}/term"] for name in ("banned", "long")]
    assert sum(parts) == pytest.approx(float(shape(shaper).total.mean()), abs=1e-6)
    assert found["shaped/missing_eos"] == -0.25 and found["shaped/clip"] != 0 and found["shaped/price_unit"] == 1
    assert all(describe(name) for name in found)
    assert shape(Shaper()).metrics() == {}


# -- as a function -----------------------------------------------------------------------------------------------------


def test_called_with_text_or_messages_it_scores_shapes_and_moves_its_prices() -> None:
    shaper = Shaper(
        penalties({**BANNED, "target_rate": 0.1}), score=lambda prompts, texts: [Score(len(text)) for text in texts]
    )
    seen: dict[str, list[Any]] = {}
    found = shaper(
        ["Say something."] * 2,
        ["a bad lamp", "lamp"],
        log_metric=lambda name, value: seen.setdefault(name, []).append(value),
        log_extra=lambda name, values: seen.setdefault(name, []).append(values),
        trainer_state=None,
    )
    assert found.raw.tolist() == [10, 4] and found[:] == [10, 4] and shaper.penalties[0].price.weight > 0
    assert seen["penalty/banned/rate"] == [0.5] and seen["raw_reward"] == [[10, 4]]
    talk = [[{"role": "user", "content": "Say something."}]]
    messages = shaper(talk, [[{"role": "assistant", "content": "a bad lamp"}]])
    assert messages.raw.tolist() == [10] and messages.total[0] < 10


def test_in_an_evaluation_no_price_moves() -> None:
    shaper = Shaper(
        penalties({**BANNED, "target_rate": 0.1}, {**LENGTH, "weight": 1.0, "warmup_episodes": 8}),
        scale=RewardScale("running"),
        score=lambda prompts, texts: [float(len(text)) for text in texts],
    )
    shaper(["x"] * 4, list(TEXTS))
    before, scale = shaper.state_dict(), shaper.scale.state_dict()
    shaper.training = lambda: False
    first, second = (list(shaper(["x"] * 4, list(TEXTS))) for _ in range(2))
    assert first == second and shaper.state_dict() == before and shaper.scale.state_dict() == scale
    shaper.training = lambda: True
    shaper(["x"] * 4, list(TEXTS))
    assert shaper.state_dict() != before


def test_an_end_that_costs_must_be_known() -> None:
    end = {"cost": "missing_eos", "weight": 1.0}
    with pytest.raises(InputError, match="end_token_ids"):
        Shaper(penalties(end))(["x"], ["lamp"], completion_ids=[[5]])
    shaper = Shaper(penalties(end), end_token_ids=[2])
    assert list(shaper(["x"] * 3, ["lamp"] * 3, completion_ids=[[5, 2], [5], []])) == [0, -1, -1]


@pytest.mark.parametrize("given", [[1.0], [1.0, "much"], [1.0, float("nan")]])
def test_a_scorer_that_does_not_score_is_an_error(given: list[Any]) -> None:
    with pytest.raises(DataError, match="reward"):
        Shaper(score=lambda prompts, texts: given)(["x", "x"], ["a", "b"])
