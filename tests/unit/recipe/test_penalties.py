"""Penalties in recipes: every cost can be written, what means nothing is refused, and old recipes keep their keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import yaml

from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.load import load
from prefopt.recipe.options.costs import NAMES, AnyCost
from prefopt.recipe.options.penalties import AnyPenalty, PenaltySpec
from prefopt.recipe.schema import EvaluateSpec, Recipe
from prefopt.recipe.scorers import PPORewardSpec
from prefopt.rewards.costs.registry import OPENED, RULES
from tests.installed import install

REWARD, COSTS = "stages.policy.reward", "stages.eval.costs"
EVERY = """\
    - {cost: length, limit: 128, shape: soft, buffer: 32, weight: 0.5}
    - {cost: repetition, ngram: 3, weight: 1.0, warmup_episodes: 1e3}
    - {cost: banned, lexicon: banned.txt, target_rate: 0.01, estimate: expected}
    - {cost: banned, name: numbers, patterns: '[0-9]{9,}', weight: 1, schedule: cosine, schedule_episodes: 500}
    - {cost: format, syntax: json, keys: [answer], target_rate: 0.05, step: log, min_weight: 0.1, initial_weight: 1}
    - {cost: missing_eos, weight: 1}
    - {cost: ensemble_std, weight: 0.5}
    - {cost: script, scripts: greek, target_mean: 0.01}
    - {cost: prompt_copy, weight: 0.5}
    - {cost: refusal, phrases: [nein], weight: 0.1}
    - {cost: classifier, pretrained: org/toxicity, revision: v1, target_rate: 0.02, estimate: expected}
    - {cost: plugin, function: shouting, weight: 1}
"""
Problems = Callable[..., dict[str, object]]


@pytest.fixture(autouse=True)
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word list beside the recipe, and a package with a cost."""
    (tmp_path / "banned.txt").write_text("bad\n")
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", {"shouting": "def cost(**k): ..."}, group="prefopt.costs", function="cost")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def priced(chain: str, penalties: str, more: str = "") -> str:
    """The chain with penalties in its ppo stage, and other keys of the reward."""
    listed = yaml.safe_load(penalties) if isinstance(penalties, str) else penalties
    reward = {"model": "rm", **yaml.safe_load(f"{{{more}}}"), "penalties": listed}
    return chain.replace(
        "reward: rm}", f"reward: {yaml.safe_dump(reward, default_flow_style=True, width=9999).strip()}}}"
    )


def measured(chain: str, costs: str, more: str = "") -> str:
    return chain.replace("data: pairs, reward: gold}", f"data: pairs, reward: gold, {more} costs: {costs}}}")


def test_every_cost_can_be_priced_and_measured(write, chain: str, tmp_path: Path) -> None:
    recipe = load(write(priced(chain, EVERY, "missing_eos_penalty: 0.0"))).recipe
    penalties = recipe.stages["policy"].reward.penalties
    assert {penalty.cost for penalty in penalties} == set(NAMES)
    assert penalties[2].lexicon == str(tmp_path / "banned.txt")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    prices = set(PenaltySpec.model_fields)
    costs = [
        {key: value for key, value in each.items() if key not in prices}
        for each in yaml.safe_load(EVERY)
        if each["cost"] != "ensemble_std"
    ]
    loaded = load(write(measured(chain, yaml.safe_dump(costs, default_flow_style=True, width=9999).strip())))
    assert len(loaded.recipe.stages["eval"].costs) == 11 and loaded.warnings == ()


def test_costs_penalties_and_what_measures_them_are_the_same_list() -> None:
    def names(union: object) -> list[str]:
        return [get_args(spec.model_fields["cost"].annotation)[0] for spec in get_args(union)]

    assert names(AnyCost) == names(AnyPenalty) == list(NAMES)
    assert {*RULES, *OPENED} == set(NAMES) and not set(RULES) & set(OPENED)


def test_without_them_keys_are_what_they_were() -> None:
    kept = spec_for_key(PPORewardSpec(model="rm"))
    assert set(kept) == {"model", "lexicon", "normalise", "clip", "missing_eos_penalty", "missing_eos_score"}
    assert "costs" not in spec_for_key(EvaluateSpec(kind="evaluate", policies=("a",), prompts=("p",)))


@pytest.mark.parametrize(
    ("penalty", "key", "message", "remedy"),
    [
        ("{cost: lenght, limit: 3, weight: 1}", "[0]", "there is no cost 'lenght'", "'length'"),
        ("{cost: zzzz, weight: 1}", "[0]", "there is no cost 'zzzz'", "costs are length, repetition"),
        ("{limit: 3, weight: 1}", "[0]", "'cost' is missing", "banned"),
        ("{cost: length, limitt: 3, weight: 1}", "[0].limitt", "unknown key", "'limit'"),
        ("{cost: banned, limit: 3, words: [a], weight: 1}", "[0].limit", "", ""),
        ("{cost: length, weight: 1}", "[0].limit", "'limit' is missing", ""),
        ("{cost: length, limit: 3}", "[0]", "the cost has no price", ""),
        ("{cost: format, syntax: json}", "[0]", "the cost has no price", ""),
        ("{cost: banned, patterns: '(', weight: 1}", "[0].patterns", "is no regular expression", ""),
        ("{cost: banned, lexicon: band.txt, weight: 1}", "[0].lexicon", "there is no", "'banned.txt'"),
        ("{cost: classifier, pretrained: ./nowhere, weight: 1}", "[0].pretrained", "there is no", ""),
        ("{cost: plugin, function: shoutin, weight: 1}", "[0].function", "registers a cost 'shoutin'", "'shouting'"),
        ("3", "[0]", "must be a mapping", ""),
        ("{cost: length, limit: 3, weight: 1, name: kl}", "", "another term of the reward", ""),
        ("{cost: length, limit: 3, weight: 1, name: missing_eos}", "", "another term of the reward", ""),
        (
            "{cost: banned, words: [a], saturation: 2, threshold: 0.5, target_rate: 0.1, estimate: expected}",
            "[0]",
            "lets it pass",
            "",
        ),
        ("{cost: missing_eos, weight: 1}", None, "paid twice", ""),
    ],
)
def test_what_means_nothing_is_said(
    problems: Problems, chain: str, penalty: str, key: str | None, message: str, remedy: str
) -> None:
    found = problems(priced(chain, f"[{penalty}]"))
    problem = found[REWARD if key is None else f"{REWARD}.penalties{key}"]
    assert message in problem.message and remedy in problem.remedy
    assert len(found) == 1


def test_two_of_one_name_and_no_list_are_refused(problems: Problems, chain: str) -> None:
    twice = "[{cost: refusal, weight: 1}, {cost: refusal, weight: 2}]"
    assert "give one a 'name'" in problems(priced(chain, twice))[f"{REWARD}.penalties"].message
    found = problems(priced(chain, "{cost: refusal, weight: 1}"))[f"{REWARD}.penalties"]
    assert "must be a list" in found.message and "[{cost: length" in found.remedy


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("bound: par, normalise: running", "needs `normalise: reference`"),
        ("bound: sigmoid, clip: 1.0", "write one"),
        ("slope: 2.0", "there is none"),
        ("missing_eos_score: -1.0, missing_eos_penalty: 0.0", "paid twice"),
    ],
)
def test_bounds_and_orders_that_are_none_are_refused(problems: Problems, chain: str, more: str, message: str) -> None:
    end = "[{cost: missing_eos, weight: 1}]" if "missing" in more else "[{cost: refusal, weight: 1}]"
    assert message in problems(priced(chain, end, more))[REWARD].message


def test_an_evaluation_measures_costs_of_policies(problems: Problems, write, chain: str) -> None:
    found = problems(measured(chain, "[{cost: ensemble_std}]"))
    assert "where a reward is trained on" in found[COSTS].message
    priced_twice = problems(measured(chain, "[{cost: refusal, weight: 1}]"))
    assert "has no such key" in priced_twice[f"{COSTS}[0].weight"].message
    warned = load(write(measured(chain, "[{cost: refusal}]", "suites: [win_rate],"))).warnings
    assert len(warned) == 1 and "'violations', which 'suites' leaves out" in warned[0]
    alone = measured(chain, "[{cost: refusal}]").replace("policies: [sft, dpo, policy], baseline: sft, ", "")
    assert "names no policies" in problems(alone)[COSTS].message
