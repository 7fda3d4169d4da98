"""`rounds`: what the unrolled recipe is, and what is refused before it is made."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefopt.errors import RecipeError
from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.load import load
from prefopt.recipe.references import graph, needs, order
from prefopt.recipe.rounds import unroll, unrolled_blocks
from prefopt.recipe.schema import Recipe

from .conftest import CHAIN, ROUNDS
from .test_load import fuzz, loads_or_refuses


def stages(write, text, *overrides):
    return load(write(text), overrides).recipe.stages


def test_names_come_round_by_round_at_the_place_of_the_first(write, rounds):
    loaded = load(write(rounds))
    assert loaded.warnings == () and loaded.recipe.rounds is None
    assert list(loaded.recipe.stages) == [
        "base", "sft", "pairs@1", "rm@1", "policy@1", "pairs@2", "rm@2", "policy@2", "pairs@3", "rm@3", "policy@3",
        "dpo", "eval",
    ]  # fmt: skip
    assert loaded.text == rounds and list(loaded.written.stages) == list(yaml.safe_load(rounds)["stages"])
    assert loaded.written.rounds.count == 3
    assert list(unrolled_blocks(yaml.safe_load(rounds))) == list(loaded.recipe.stages)


def test_a_round_reads_itself_and_what_is_carried(write, rounds):
    recipe = load(write(rounds)).recipe
    model = {"model": ("base",)}
    assert needs(recipe, "pairs@1") == {**model, "policies": ("sft",)}
    assert needs(recipe, "policy@1") == {**model, "init": ("sft",), "reward": ("rm@1",)}
    assert needs(recipe, "pairs@2") == {**model, "policies": ("policy@1",)}
    assert needs(recipe, "rm@2") == {**model, "init": ("policy@1",), "data": ("pairs@2",)}
    assert needs(recipe, "policy@3") == {**model, "init": ("policy@2",), "reward": ("rm@3",)}


def test_outside_a_name_means_the_last_round_and_a_round_can_be_named(write, rounds):
    text = rounds.replace("[sft, dpo, policy]", "[sft, policy@1, policy]").replace(
        "baseline: sft", "baseline: policy@1"
    )
    text = text.replace("reward: gold}", "reward: rm@2}")
    recipe = load(write(text)).recipe
    assert recipe.stages["eval"].policies == ("sft", "policy@1", "policy@3")
    assert recipe.stages["eval"].baseline == "policy@1"
    assert recipe.stages["eval"].reward.model == "rm@2"
    assert recipe.stages["dpo"].data == ("pairs@3",) and recipe.stages["dpo"].init == "sft"
    assert recipe.stages["eval"].data == ("pairs@3",)


def test_prompts_of_a_round_follow_those_of_the_round_before(write, rounds):
    found = stages(write, rounds.replace("max_prompts: 100", "max_prompts: 100, prompt_offset: 7"))
    assert [found[f"pairs@{number}"].prompt_offset for number in (1, 2, 3)] == [7, 107, 207]
    everything = stages(write, rounds.replace(", max_prompts: 100", ""))
    assert [everything[f"pairs@{number}"].prompt_offset for number in (1, 2, 3)] == [0, 0, 0]


def test_accumulated_data_is_that_of_all_rounds_so_far(write, rounds):
    found = stages(write, rounds.replace("carry:", "accumulate: true, carry:"))
    assert [found[f"rm@{number}"].data for number in (1, 2, 3)] == [
        ("pairs@1",), ("pairs@1", "pairs@2"), ("pairs@1", "pairs@2", "pairs@3")
    ]  # fmt: skip
    assert found["dpo"].data == ("pairs@3",), "only rounds look back"


def test_an_evaluation_of_every_round_compares_with_the_round_before(write, rounds):
    text = rounds.replace("[sft, dpo, policy]", "[sft, policy]").replace(
        "[pairs, rm, policy]", "[pairs, rm, policy, eval]"
    )
    found = stages(write, text)
    assert found["eval@1"].policies == ("sft", "policy@1") and found["eval@1"].baseline == "sft"
    assert found["eval@3"].policies == ("policy@2", "policy@3") and found["eval@3"].baseline == "policy@2"


def test_a_data_set_of_the_same_name_is_meant(write, rounds):
    text = rounds.replace("  asked:", "  pairs: {path: toy, name: preferences}\n  asked:")
    assert stages(write, text)["rm@2"].data == ("pairs",)


def test_one_round_is_a_round(write, rounds):
    found = stages(write, rounds.replace("count: 3", "count: 1"))
    assert [name for name in found if "@" in name] == ["pairs@1", "rm@1", "policy@1"]
    assert found["eval"].policies == ("sft", "dpo", "policy@1")


def test_overrides_change_every_round(write, rounds):
    found = stages(write, rounds, "stages.policy.cliprange=0.3", "rounds.count=2")
    assert [found[name].cliprange for name in ("policy@1", "policy@2")] == [0.3, 0.3] and "policy@3" not in found


def test_rounds_differ_in_names_only(write, rounds):
    found = stages(write, rounds)
    second, third = (spec_for_key(found[f"policy@{number}"]) for number in (2, 3))
    assert {key for key in second if second[key] != third[key]} == {"init", "reward"}


def test_a_recipe_without_rounds_is_left_as_it_is(write, chain):
    loaded = load(write(chain))
    assert unroll(loaded.recipe) is loaded.recipe
    assert list(unrolled_blocks(yaml.safe_load(chain))) == list(loaded.recipe.stages)
    assert unrolled_blocks({"stages": 3, "rounds": []}) == {}


IN_ROUNDS = "stages: [pairs, rm, policy]"


@pytest.mark.parametrize(
    ("old", "new", "key", "message", "remedy"),
    [
        (IN_ROUNDS, "stages: [pairs, rm, polcy]", "rounds.stages[2]", "no stage 'polcy'", "'policy'"),
        (IN_ROUNDS, "stages: [pairs, rm, policy, base]", "rounds.stages[3]", "all rounds share", ""),
        (IN_ROUNDS, "stages: []", "rounds.stages", "empty", ""),
        ("count: 3", "count: 0", "rounds.count", "at least 1", ""),
        ("carry:", "cary:", "rounds.cary", "unknown key", "'carry'"),
        ("{sft: policy}", "{stf: policy}", "rounds.carry.stf", "no stage 'stf'", "'sft'"),
        ("{sft: policy}", "{pairs: policy}", "rounds.carry.pairs", "itself repeated", "sft"),
        ("{sft: policy}", "{eval: policy}", "rounds.carry.eval", "makes no model", "sft"),
        ("{sft: policy}", "{sft: polcy}", "rounds.carry.sft", "is no stage", "'policy'"),
        ("{sft: policy}", "{sft: dpo}", "rounds.carry.sft", "not repeated", "policy"),
        ("{sft: policy}", "{sft: rm}", "rounds.carry.sft", "kind 'reward'", "policy"),
        ("dpo, policy]", "dpo, policy@4]", "stages.eval.policies[2]", "no round 'policy@4'", "policy@1 to policy@3"),
        ("dpo, policy]", "dpo, sft@1]", "stages.eval.policies[2]", "not repeated", "'sft'"),
        ("dpo, policy]", "dpo, polcy@1]", "stages.eval.policies[2]", "no stage 'polcy@1'", "'policy'"),
        ("init: sft, data: pairs", "init: sft, data: pairs@9", "stages.dpo.data", "no round 'pairs@9'", ""),
        ("reward: gold}", "reward: rm@7}", "stages.eval.reward", "no round 'rm@7'", ""),
        ("reward: gold}", "reward: policy@1}", "stages.eval.reward", "scores nothing", ""),
        ("reward: rm}", "reward: rm@1}", "stages.policy.reward", "within a round", "'rm'"),
        ("init: sft, data: [pairs]", "init: sft, data: [pairs@1]", "stages.rm.data[0]", "within a round", "'pairs'"),
        (IN_ROUNDS, "stages: [pairs, policy]", "rounds.stages", "'rm' needs 'pairs' of a round", "add 'rm'"),
    ],
)  # fmt: skip
def test_what_is_refused(problems, rounds, old, new, key, message, remedy):
    text = rounds.replace(old, new, 1)
    found = problems(text)
    assert message in found[key].message
    assert remedy in found[key].remedy
    assert len(found) == 1
    line = next(number for number, line in enumerate(text.splitlines(), 1) if new in line)
    assert found[key].where.endswith(f"recipe.yaml:{line}")


def test_names_with_a_round_are_made_and_not_written(problems, rounds):
    found = problems(rounds.replace("  dpo: {", "  dpo@2: {").replace("[sft, dpo, policy]", "[sft, policy]"))
    assert "'@' in 'dpo@2'" in found["stages.dpo@2"].message and "dpo-2" in found["stages.dpo@2"].remedy
    found = problems(CHAIN.replace("demos: {", "demos@1: {").replace("data: demos", "data: demos@1"))
    assert set(found) == {"data.demos@1"}


def test_a_name_that_would_be_too_long_is_refused(problems, rounds):
    found = problems(re.sub(r"\brm\b", "r" * 63, rounds))
    assert "too long" in found["rounds.stages[1]"].message


def test_a_cycle_through_a_round_is_one_problem(problems, rounds):
    found = problems(rounds.replace("{kind: sft, data: demos}", "{kind: sft, init: policy@1, data: demos}"))
    assert len(found) == 1 and "sft" in next(iter(found.values())).message


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (", carry: {sft: policy}", "", "starts from the same policies"),
        ("{sft: policy}", "{base: policy}", "nothing is carried"),
    ],
)
def test_rounds_that_would_do_the_same_are_warned_of(write, rounds, old, new, word):
    (warning,) = load(write(rounds.replace(old, new))).warnings
    assert word in warning and "recipe.yaml:15: rounds" in warning


ORDER = ("pairs", "rm", "policy", "dpo", "eval")


@fuzz
@given(
    count=st.integers(1, 5),
    repeated=st.sets(st.sampled_from(ORDER), min_size=1),
    accumulate=st.booleans(),
    carry=st.dictionaries(st.sampled_from(["sft", "base"]), st.sampled_from(["policy", "dpo"]), max_size=2),
)
def test_what_is_unrolled_is_a_recipe_with_an_order(tmp_path, count, repeated, accumulate, carry):
    path = tmp_path / "r.yaml"
    rounds = {"count": count, "stages": sorted(repeated), "accumulate": accumulate, "carry": carry}
    path.write_text(CHAIN + yaml.safe_dump({"rounds": rounds}), encoding="utf-8")
    try:
        recipe = load(path).recipe
    except RecipeError as error:
        assert all(problem.message for problem in error.problems)
        return
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert len(recipe.stages) == 7 + (count - 1) * len(repeated)
    place = {name: index for index, name in enumerate(order(graph(recipe)))}
    for stage in repeated:
        assert [f"{stage}@{number}" in place for number in range(count + 2)] == [False, *[True] * count, False]
    for stage, needed in graph(recipe).items():
        assert all(int(need.partition("@")[2] or 0) <= int(stage.partition("@")[2] or 99) for need in needed)


KEYS = """rounds rounds.count rounds.stages rounds.carry rounds.carry.sft rounds.accumulate stages.rm data.asked
stages.policy.reward stages.policy.reward.model stages.policy.kl stages.policy.kl.coefficient stages.policy.prompts
stages.policy.kl.estimator stages.policy.rollout_batch_size stages.policy.num_mini_batches stages.policy.total_episodes
stages.policy.max_new_tokens stages.pairs.judge stages.pairs.policies stages.pairs.prompts stages.pairs.temperature
stages.pairs.samples_per_prompt stages.pairs.pairs_per_prompt stages.rm.data stages.eval.best_of stages.eval.reward
stages.eval.reward.lexicon stages.eval.policies""".split()
VALUES = """|0|1|-1|1e400|1.5|true|x|[x, 1]|{a: 1}|[[]]|null|'${HOME}'|999999999999999999999|sft|gold|rm|[rm]|pairs
|[pairs, policy]|policy@1|policy@0|'@'|'@1'|rm@99999|{model: rm}|{lexicon: x}|{model: 3}|[policy, policy]|{sft: 3}
|{rm: rm}|k3|{estimator: k2}|dpo|eval
|{weighted: [rm, {model: policy@1}, {lexicon: x}, 3]}|{weighted: x}|{url: x}""".replace("\n", "").split("|")


@fuzz
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), min_size=1, max_size=3))
def test_any_value_anywhere_is_accepted_or_refused_in_words(tmp_path, changes):
    path = tmp_path / "r.yaml"
    path.write_text(ROUNDS, encoding="utf-8")
    assert loads_or_refuses(path, [f"{key}={value}" for key, value in changes])
