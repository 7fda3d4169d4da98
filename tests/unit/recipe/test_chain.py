"""Collecting, reward models and ppo in a recipe: what they may name, and which sizes fit each other."""

import pytest

from prefopt.recipe.load import load
from prefopt.recipe.references import graph, needs, order, scorers_of
from prefopt.recipe.schema import Recipe


def test_the_chain_loads_and_comes_in_order(write, chain):
    loaded = load(write(chain))
    assert loaded.warnings == () and loaded.written == loaded.recipe
    assert order(graph(loaded.recipe)) == ("base", "sft", "pairs", "rm", "dpo", "policy", "eval")
    assert Recipe.model_validate(loaded.recipe.model_dump(mode="json")) == loaded.recipe


def test_needs_of_every_role(write, chain):
    judged = chain.replace("pairs: {kind", "more: {kind: collect, policies: [dpo, policy], prompts: asked, "
                           "judge: {model: rm, noise: 0.1}}\n  pairs: {kind")  # fmt: skip
    recipe = load(write(judged)).recipe
    model = {"model": ("base",)}
    assert needs(recipe, "pairs") == {**model, "policies": ("sft",)}
    assert needs(recipe, "rm") == {**model, "init": ("sft",), "data": ("pairs",)}
    assert needs(recipe, "policy") == {**model, "init": ("sft",), "reward": ("rm",)}
    assert needs(recipe, "more") == {**model, "policies": ("dpo", "policy"), "judge": ("rm",)}
    assert needs(recipe, "eval") == {**model, "policies": ("sft", "dpo", "policy"), "data": ("pairs",)}


def test_specs_and_mappings_say_the_same_scorer(write, chain):
    written = {"text": "rm", "mapping": {"model": "rm"}, "word list": {"lexicon": "x"}, "list": ["rm"], "none": None,
               "sum": {"weighted": ["gold", {"url": "http://x"}, {"model": "rm", "weight": 2}]}}  # fmt: skip
    assert {form: list(scorers_of(value)) for form, value in written.items()} == {
        "text": [((), "rm")], "mapping": [(("model",), "rm")], "word list": [], "list": [], "none": [],
        "sum": [(("weighted", 0), "gold"), (("weighted", 2, "model"), "rm")],
    }  # fmt: skip
    stages = load(write(chain)).recipe.stages
    assert [name for _, name in scorers_of(stages["policy"].reward)] == ["rm"]
    assert [name for _, name in scorers_of(stages["pairs"].judge)] == ["gold"]


@pytest.mark.parametrize(
    ("old", "new", "key", "message", "remedy"),
    [
        ("reward: rm", "reward: rmm", "stages.policy.reward", "unknown reward 'rmm'", "'rm'"),
        ("reward: rm", "reward: {model: godl}", "stages.policy.reward.model", "unknown reward", "'gold'"),
        ("reward: rm", "reward: zzzz", "stages.policy.reward", "unknown reward", "the reward stage rm"),
        ("reward: rm", "reward: dpo", "stages.policy.reward", "kind 'dpo', which scores nothing", "'gold'"),
        ("reward: rm", "reward: words.txt", "stages.policy.reward", "no stage", "reward: {lexicon: words.txt}"),
        ("reward: rm", "reward: {}", "stages.policy.reward", "one of 'model', 'lexicon', 'function'", ""),
        ("reward: rm", "reward: 3", "stages.policy.reward", "one name or a mapping", "{lexicon: FILE}"),
        ("reward: rm", "reward: [rm]", "stages.policy.reward", "one name or a mapping, not a list", ""),
        ("reward: rm", "reward: a/words.txt", "stages.policy.reward", "no stage", "reward: {lexicon: a/words.txt}"),
        ("judge: gold", "judge: sft", "stages.pairs.judge", "scores nothing", "{lexicon: FILE}"),
        ("judge: gold", "judge: {model: godl}", "stages.pairs.judge.model", "unknown judge", "'gold'"),
        ("init: sft, prompts", "init: rm, prompts", "stages.policy.init", "scores answers", "sft, dpo, kto, ppo"),
        ("init: sft, data: [pairs]", "init: pairs, data: [pairs]", "stages.rm.init", "makes no model", ""),
        ("policies: [sft]", "policies: [rm]", "stages.pairs.policies[0]", "scores answers", ""),
        ("policies: [sft]", "policies: [stf]", "stages.pairs.policies[0]", "no stage 'stf'", "'sft'"),
        ("policies: [sft]", "policies: [pairs]", "stages.pairs.policies[0]", "names itself", ""),
        ("data: [pairs]", "data: [pars]", "stages.rm.data[0]", "no data set 'pars'", "'pairs'"),
        ("data: [pairs]", "data: [asked]", "stages.rm.data", "prompts alone", "learns from pairs"),
        ("data: [pairs]", "data: [demos]", "stages.rm.data", "no pairs", "learns from pairs"),
        ("data: demos", "data: asked", "stages.sft.data", "prompts alone", "completions"),
        ("data: corpus", "data: asked", "stages.base.data", "prompts alone", "whole texts"),
        ("data: corpus", "data: pairs", "stages.base.data", "before anything is collected", ""),
        ("prompts: asked, judge", "prompts: corpus, judge", "stages.pairs.prompts", "without prompts", "no prompts"),
        ("prompts: asked, reward", "prompts: pairs, reward", "stages.policy.prompts", "gives pairs", "asked"),
        ("prompts: asked, reward", "prompts: askd, reward", "stages.policy.prompts", "no data set", "'asked'"),
    ],
)  # fmt: skip
def test_wrong_names(problems, chain, old, new, key, message, remedy):
    found = problems(chain.replace(old, new, 1))
    assert message in found[key].message
    assert remedy in found[key].remedy
    assert all("need each other" in problem.message for path, problem in found.items() if path != key)


def test_gold_is_no_name_for_a_stage(problems, chain):
    found = problems(chain.replace("rm: {", "gold: {").replace("reward: rm", "reward: gold"))
    assert "reward of the toy world" in found["stages.gold"].message


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("prompts: asked, judge", "prompts: hub, judge", "stages.pairs.judge"),
        ("prompts: asked, reward: rm", "prompts: [asked, hub], reward: {model: gold}", "stages.policy.reward.model"),
        ("prompts: asked, data: pairs", "prompts: hub, data: pairs", "stages.eval.reward"),
        ("prompts: asked, data: pairs", "data: hub", "stages.eval.reward"),
    ],
)
def test_gold_scores_the_toy_world_only(problems, chain, old, new, key):
    text = chain.replace("  asked:", "  hub: {path: org/hub}\n  asked:").replace(old, new)
    assert "'hub' is org/hub" in problems(text)[key].message


def test_gold_follows_collected_pairs_to_their_prompts(problems, write, chain):
    text = chain.replace("judge: gold", "judge: {model: first}").replace("prompts: asked, data: pairs", "data: pairs")
    text = text.replace("  asked:", "  hub: {path: org/hub}\n  asked:")
    text += "  first: {kind: reward, data: hub}\n"
    assert load(write(text)).recipe.stages["eval"].reward.model == "gold"
    found = problems(text.replace("prompts: asked, judge", "prompts: hub, judge"))
    assert set(found) == {"stages.eval.reward"} and "'hub' is org/hub" in found["stages.eval.reward"].message


def test_a_cycle_through_a_reward_is_drawn(problems, chain):
    found = problems(chain.replace("judge: gold", "judge: rm"))
    assert "pairs → rm → pairs" in found["stages.pairs.judge"].message


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("reward: rm", "reward: rm, num_mini_batches: 3", "stages.policy.rollout_batch_size", "into 3 equal"),
        ("reward: rm", "reward: rm, rollout_batch_size: 1.0e+2", "stages.policy.per_device_train_batch_size", "of 100"),
        ("reward: rm", "reward: rm, total_episodes: 127", "stages.policy.total_episodes", "one rollout of 128"),
        ("reward: rm", "reward: rm, max_new_tokens: 256", "stages.policy.max_new_tokens", "no room"),
        ("reward: rm", "reward: rm, max_length: 64", "stages.policy.max_new_tokens", "no room"),
        ("reward: rm", "reward: rm, max_length: 512", "stages.policy.max_length", "256 positions"),
        ("reward: rm", "reward: rm, kl: {estimator: k3}", "stages.policy.kl.estimator", "gradient is wrong"),
        (
            "reward: rm",
            "reward: rm, kl: {apply: loss, estimator: k1}",
            "stages.policy.kl.estimator",
            "gradient is wrong",
        ),
        ("reward: rm", "reward: rm, kl: {estimator: k4}", "stages.policy.kl.estimator", "must be one of k1"),
        ("reward: rm", "reward: rm, kl: {coefficient: 20, adaptive_target: 6}", "stages.policy.kl", "starts between"),
        ("reward: rm", "reward: rm, samples_per_prompt: 3", "stages.policy.samples_per_prompt", "128 episodes"),
        ("reward: rm", "reward: rm, guards: {keep: judge}", "stages.policy.guards.keep", "no 'judge'"),
        ("reward: rm", "reward: rm, judge: rm", "stages.policy.judge", "what is trained on"),
        ("judge: gold", "judge: gold, max_new_tokens: 300", "stages.pairs.max_new_tokens", "no room"),
        ("judge: gold", "judge: gold, samples_per_prompt: 1", "stages.pairs.samples_per_prompt", "two completions"),
        ("judge: gold", "judge: gold, pairs_per_prompt: 3", "stages.pairs.pairs_per_prompt", "need 6"),
        ("reward: gold", "best_of: 8", "stages.eval.best_of", "by a reward"),
    ],
)
def test_sizes_that_do_not_fit(problems, chain, old, new, key, message):
    found = problems(chain.replace(old, new, 1))
    assert message in found[key].message and len(found) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("reward: rm", "reward: rm, rollout_batch_size: 24, num_mini_batches: 3"),  # a minibatch of less than a pass
        ("reward: rm", "reward: rm, rollout_batch_size: 192, num_mini_batches: 3"),
        ("reward: rm", "reward: {model: rm, normalise: none}, total_episodes: 128"),
        ("policies: [sft], ", "policies: [base, sft], samples_per_prompt: 1, "),
        ("judge: gold", "judge: gold, pairs_per_prompt: 2"),
        ("judge: gold", "judge: {model: gold, labels: soft, noise: 0.1}"),
        ("data: pairs, reward: gold", "reward: gold, best_of: 64"),
    ],
)
def test_sizes_that_fit(write, chain, old, new):
    assert load(write(chain.replace(old, new, 1))).warnings == ()


@pytest.mark.parametrize(
    ("old", "new", "key", "word"),
    [
        ("reward: rm", "reward: rm, kl: {coefficient: 0}", "stages.policy.kl.coefficient", "drifts"),
        # 128 episodes are one rollout, and that gives four optimiser steps.
        ("reward: rm", "reward: rm, total_episodes: 128, warmup_steps: 5", "stages.policy.warmup_steps", "of 4"),
        # Training goes on to the end of the rollout that has the last of them.
        ("reward: rm", "reward: rm, total_episodes: 200, warmup_steps: 9", "stages.policy.warmup_steps", "of 8"),
        ("judge: gold", "judge: gold, temperature: 0", "stages.pairs.temperature", "all the same"),
        ("reward: gold", "reward: gold, best_of: 4, temperature: 0", "stages.eval.temperature", "'best_of'"),
        ("asked:", "spare: {path: toy, name: prompts}\n  asked:", "data.spare", "no stage uses"),
    ],
)
def test_what_is_likely_not_meant(write, chain, old, new, key, word):
    (warning,) = load(write(chain.replace(old, new, 1))).warnings
    assert key in warning and word in warning and "recipe.yaml:" in warning


class TestWordLists:
    """`{lexicon: FILE}` of a reward or a judge."""

    @pytest.mark.parametrize(("role", "old"), [("reward", "reward: rm"), ("judge", "judge: gold")])
    def test_they_lie_beside_the_recipe(self, write, chain, tmp_path, monkeypatch, role, old):
        (tmp_path / "words.txt").write_text("good\t1.9\n")
        monkeypatch.setenv("PREFOPT_WORDS", str(tmp_path))
        stage = "policy" if role == "reward" else "pairs"
        for written in ("words.txt", "./words.txt", '"${PREFOPT_WORDS}/words.txt"'):
            path = write(chain.replace(old, f"{role}: {{lexicon: {written}}}", 1))
            monkeypatch.chdir("/")
            scorer = getattr(load(path).recipe.stages[stage], role)
            assert scorer.lexicon == str(tmp_path / "words.txt") and scorer.model is None

    def test_one_that_is_not_there_is_a_problem_with_its_line(self, problems, chain, tmp_path):
        (tmp_path / "words.txt").write_text("good\t1.9\n")
        (problem,) = problems(chain.replace("reward: rm", "reward: {lexicon: wrds.txt}")).values()
        assert problem.path == "stages.policy.reward.lexicon" and "'words.txt'" in problem.remedy
        assert problem.where.endswith("recipe.yaml:13")

    def test_a_folder_is_none(self, problems, chain, tmp_path):
        found = problems(chain.replace("reward: rm", "reward: {lexicon: .}"))
        assert "a word list is a file" in found["stages.policy.reward.lexicon"].message

    def test_a_name_beside_it_is_one_too_many(self, problems, chain, tmp_path):
        (tmp_path / "words.txt").write_text("good\t1.9\n")
        found = problems(chain.replace("reward: rm", "reward: {model: rm, lexicon: words.txt}"))
        assert "'model' and 'lexicon' are two scorers" in found["stages.policy.reward"].message
