"""Every way to write a scorer: what it may say, what is found in it, and that old recipes keep their keys."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.load import load
from prefopt.recipe.references import graph, needs, order
from prefopt.recipe.schema import Recipe
from prefopt.recipe.scorers import JudgeSpec, PPORewardSpec, ScorerSpec
from tests.installed import BREVITY, install

REWARD, JUDGE = "stages.policy.reward", "stages.pairs.judge"
Problems = Callable[..., dict[str, object]]


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", {"brevity": BREVITY})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def reward(chain: str, scorer: str) -> str:
    return chain.replace("reward: rm", f"reward: {scorer}", 1)


@pytest.mark.parametrize(
    ("scorer", "label"),
    [
        ("{function: brevity}", "brevity"),
        ("{url: 'http://localhost:8000/score/', timeout: 5, batch_size: 1.6e+1}", "localhost:8000/score"),
        ("{url: 'https://rewards.example/?key=1', token_env: REWARD_TOKEN}", "rewards.example"),
        ("{pretrained: org/reward-model, revision: v2, batch_size: 8, normalise: none}", "org/reward-model"),
        ("{weighted: [rm, {function: brevity, weight: -0.5}], clip: 3.0}", "rm + brevity"),
        ("{model: gold, without: [forbidden, length]}", "gold"),
    ],
)
def test_every_source_can_be_written(write, chain: str, scorer: str, label: str) -> None:
    loaded = load(write(reward(chain, scorer)))
    assert loaded.warnings == () and loaded.recipe.stages["policy"].reward.label == label
    assert Recipe.model_validate(loaded.recipe.model_dump(mode="json")) == loaded.recipe
    judged = chain.replace("judge: gold", f"judge: {re.sub(', (normalise|clip): [^,}]*', '', scorer)}", 1)
    assert load(write(judged.replace("[rm, ", "[gold, "))).recipe.stages["pairs"].judge.labels == "sampled"


@pytest.mark.parametrize(
    ("scorer", "key", "message", "remedy"),
    [
        ("{function: brevty}", ".function", "no installed package registers a reward function 'brevty'", "'brevity'"),
        ("{function: 3}", ".function", "must be text", ""),
        ("{functon: brevity}", ".functon", "unknown key", "'function'"),
        ("{url: localhost:8000}", ".url", "is no address", ""),
        ("{url: 'ftp://x/y'}", ".url", "begins with http", ""),
        ("{url: 'http://'}", ".url", "is no address", ""),
        ("{url: 'http://me:pw@x/y'}", ".url", "write 'token_env'", ""),
        ("{url: 'http://x/y', timeout: 0}", ".timeout", "above 0", ""),
        ("{url: 'http://x/y', batch_size: 0}", ".batch_size", "at least 1", ""),
        ("{url: 'http://x/y', token_env: sk-12345}", ".token_env", "name of an environment variable", ""),
        ("{url: 'http://x/y', tokenenv: A}", ".tokenenv", "unknown key", "'token_env'"),
        ("{function: brevity, timeout: 5}", "", "'timeout' is for 'url' only", ""),
        ("{model: rm, batch_size: 5}", "", "'batch_size' is for 'url' and 'pretrained' only", ""),
        ("{url: 'http://x/y', revision: v1}", "", "'revision' is for 'pretrained' only", ""),
        ("{pretrained: ./nowhere}", ".pretrained", "there is no", ""),
        ("{pretrained: site}", ".pretrained", "holds no config.json", ""),
        ("{pretrained: recipe.yaml}", ".pretrained", "a model is a folder", ""),
        ("{function: brevity, url: 'http://x/y'}", "", "'function' and 'url' are two scorers", ""),
        ("{model: rm, weighted: [rm, gold]}", "", "'model' and 'weighted' are two scorers: write one", ""),
        ("{model: rm, without: forbidden}", "", "'without' is for `model: gold`", ""),
        ("{model: gold, without: [forbiden]}", ".without[0]", "", ""),
        ("{weighted: [rm]}", ".weighted", "two scorers or more", ""),
        ("{weighted: rm}", ".weighted", "must be a list of scorers, not 'rm'", "{weighted: [{model: NAME"),
        ("{weighted: [rm, {}]}", ".weighted[1]", "nothing says who scores", ""),
        ("{weighted: [rm, 3]}", ".weighted[1]", "must be a mapping", ""),
        ("{weighted: [rm, {model: gold, url: 'http://x'}]}", ".weighted[1]", "two scorers: write one", ""),
        ("{weighted: [rm, {modle: rm}]}", ".weighted[1].modle", "unknown key", "'model'"),
        ("{weighted: [rm, {weighted: [rm, rm]}]}", ".weighted[1].weighted", "", ""),
        ("{weighted: [rm, {function: brevty}]}", ".weighted[1].function", "no installed package", "'brevity'"),
        ("{weighted: [rm, {lexicon: wrds.txt}]}", ".weighted[1].lexicon", "there is no", "'words.txt'"),
        ("{weighted: [rm, rmm]}", ".weighted[1]", "unknown reward 'rmm'", "'rm'"),
        ("{weighted: [rm, {model: godl}]}", ".weighted[1].model", "unknown reward 'godl'", "'gold'"),
        ("{weighted: [rm, {model: dpo}]}", ".weighted[1].model", "which scores nothing", "the reward stage rm"),
        ("'http://localhost:8000/score'", "", "is no stage", "reward: {url: http://localhost:8000/score}"),
        ("org/model", "", "is no stage", "reward: {pretrained: org/model}"),
        ("zzzz", "", "unknown reward", "lexicon, function, url, pretrained, weighted"),
    ],
)  # fmt: skip
def test_what_cannot_score_is_said(
    problems: Problems, chain: str, tmp_path: Path, scorer: str, key: str, message: str, remedy: str
) -> None:
    (tmp_path / "words.txt").write_text("good\t1.9\n")
    found = problems(reward(chain, scorer))
    problem = found[f"{REWARD}{key}"]
    assert message in problem.message and remedy in problem.remedy
    assert "sk-12345" not in str(problem)
    assert len(found) == 1 or "rm" not in scorer


def test_gold_in_a_sum_scores_the_toy_world_only(problems: Problems, chain: str) -> None:
    text = chain.replace("  asked:", "  hub: {path: org/hub}\n  asked:").replace(
        "prompts: asked, reward", "prompts: hub, reward"
    )
    found = problems(reward(text, "{weighted: [rm, {model: gold, weight: 2}]}"))
    assert "'hub' is org/hub" in found[f"{REWARD}.weighted[1].model"].message


def test_stages_in_a_sum_are_needed_and_come_first(write, chain: str) -> None:
    text = reward(chain, "{weighted: [{model: rm, weight: 2}, second, gold, rm]}")
    recipe = load(write(text + "  second: {kind: reward, init: sft, data: pairs}\n")).recipe
    assert needs(recipe, "policy")["reward"] == ("rm", "second")
    ranks = order(graph(recipe))
    assert max(ranks.index("rm"), ranks.index("second")) < ranks.index("policy")


def test_a_cycle_through_a_sum_is_drawn(problems: Problems, chain: str) -> None:
    found = problems(chain.replace("judge: gold", "judge: {weighted: [gold, {model: rm}]}"))
    assert "pairs → rm → pairs" in found[JUDGE].message


def test_a_sum_in_rounds_names_the_stages_of_its_round(write, rounds: str, problems: Problems) -> None:
    text = reward(rounds, "{weighted: [{model: rm, weight: 2}, {function: brevity}, gold]}")
    text = text.replace("reward: gold}", "reward: {weighted: [rm@2, {model: rm}]}}")
    recipe = load(write(text)).recipe
    for number in (1, 2, 3):
        parts = recipe.stages[f"policy@{number}"].reward.weighted
        assert [(part.model, part.function, part.weight) for part in parts] == [
            (f"rm@{number}", None, 2.0), (None, "brevity", 1.0), ("gold", None, 1.0)
        ]  # fmt: skip
        assert needs(recipe, f"policy@{number}")["reward"] == (f"rm@{number}",)
    assert [part.model for part in recipe.stages["eval"].reward.weighted] == ["rm@2", "rm@3"]
    assert needs(recipe, "eval")["reward"] == ("rm@2", "rm@3")
    found = problems(text.replace("rm@2", "rm@4"))
    assert "there is no round 'rm@4'" in found["stages.eval.reward.weighted[0]"].message


def test_files_in_a_sum_lie_beside_the_recipe(write, chain: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "words.txt").write_text("good\t1.9\n")
    (tmp_path / "rm-model").mkdir()
    (tmp_path / "rm-model" / "config.json").write_text("{}")
    path = write(reward(chain, "{weighted: [{lexicon: words.txt}, {pretrained: rm-model}, {pretrained: org/x}]}"))
    monkeypatch.chdir("/")
    parts = load(path).recipe.stages["policy"].reward.weighted
    assert parts[0].lexicon == str(tmp_path / "words.txt") and parts[1].pretrained == str(tmp_path / "rm-model")
    assert parts[2].pretrained == "org/x" and parts[1].label == "rm-model"


def test_recipes_without_the_new_sources_keep_their_keys() -> None:
    assert spec_for_key(ScorerSpec(model="rm")) == {"model": "rm", "lexicon": None}
    assert spec_for_key(JudgeSpec(model="gold")).keys() == {"model", "lexicon", "labels", "noise", "scale"}
    assert "url" not in spec_for_key(PPORewardSpec(lexicon="/words.txt"))


def test_what_changes_no_scores_stays_out_of_the_key() -> None:
    plain = ScorerSpec(url="http://x/y")
    assert spec_for_key(plain) == spec_for_key(ScorerSpec(url="http://x/y", timeout=3.0, token_env="TOKEN"))
    assert spec_for_key(plain) != spec_for_key(ScorerSpec(url="http://x/z"))
    model = ScorerSpec(pretrained="a/b")
    assert spec_for_key(model) != spec_for_key(ScorerSpec(pretrained="a/b", revision="v2"))
    weights = [ScorerSpec(weighted=[{"model": "rm", "weight": weight}, {"model": "gold"}]) for weight in (1.0, 2.0)]
    assert spec_for_key(weights[0]) != spec_for_key(weights[1])
    assert json.loads(json.dumps(spec_for_key(weights[0]))) == spec_for_key(weights[0])


def test_the_schema_lets_a_name_stand_for_a_part() -> None:
    weighted = Recipe.model_json_schema()["$defs"]["ScorerSpec"]["properties"]["weighted"]
    (items,) = [option["items"] for option in weighted["anyOf"] if option["type"] == "array"]
    assert items["anyOf"] == [{"type": "string"}, {"$ref": "#/$defs/PartSpec"}]
