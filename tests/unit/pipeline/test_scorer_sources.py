"""Scorers of every source as stages open them: by what the recipe says, known by what is in them, and paid by ppo."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from experiment import REGISTRY, Experiment

from prefopt.data.toy import world
from prefopt.errors import EnvironmentFault, InputError
from prefopt.models.reward_artefact import RewardArtefact
from prefopt.pipeline.context import StageContext
from prefopt.pipeline.graph import nodes
from prefopt.pipeline.keys import Keys, StageKey
from prefopt.pipeline.scoring import open_scorer, scorer_identity
from prefopt.pipeline.stages import ppo
from prefopt.recipe.load import load
from prefopt.recipe.scorers import ScorerSpec
from prefopt.records import Message
from prefopt.rewards.pretrained import PretrainedScorer
from prefopt.store.hashing import HashCache
from tests.installed import BREVITY, install
from tests.reward_server import Reply, reward_server
from tests.unit.pipeline.test_reward_stage import context, finished
from tests.unit.pipeline.test_reward_variants import trained
from tests.unit.rewards.test_pretrained import decoder

# The embedded world's own reward, as a package would give it.
GOLD = """
from prefopt.data.toy import world
from prefopt.records import Message

def reward(prompts, completions, **more):
    asked = [tuple(Message(m["role"], m["content"]) for m in prompt) for prompt in prompts]
    return [world.gold(prompt, text) for prompt, text in zip(asked, completions)]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    install(folder, {"brevity": BREVITY, "truth": GOLD})
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_rewards"]:
        del sys.modules[name]


def scored(made: StageContext, spec: ScorerSpec, *texts: str) -> list[float]:
    found = open_scorer(spec, {}, made).score([(Message("user", "hello"),)] * len(texts), texts)
    return [score.value for score in found]


def test_every_source_is_opened_by_what_the_recipe_says(tmp_path: Path, site: Path) -> None:
    lines: list[str] = []
    made = replace(context(tmp_path / "run"), log=lines.append)
    assert scored(made, ScorerSpec(function="brevity"), "abc", "") == [-3, 0] and lines == []
    with reward_server() as server:
        url = ScorerSpec(url=server.url)
        assert scored(made, url, "abc", "") == [3, 0]
        assert lines == [
            f"{url.label} scores: what is behind an address is not known, so a change there is not noticed"
        ]
        both = ScorerSpec(weighted=[{"function": "brevity", "weight": 2.0}, {"url": server.url, "weight": 0.5}])
        assert scored(made, both, "abc", "") == [-4.5, 0]
        (score,) = open_scorer(both, {}, made).score([(Message("user", "hello"),)], ["ab"])
        assert score.axes == {"brevity": -2, url.label: 2}
    scorer = open_scorer(ScorerSpec(pretrained=str(decoder(tmp_path / "rm"))), {}, made)
    assert (
        isinstance(scorer, PretrainedScorer) and scorer.name == "rm" and len(scored(made, both.weighted[0], "a")) == 1
    )
    assert lines[-1] == "rm reads its chat template, 256 positions"


def test_a_token_that_is_not_set_stops_the_stage_before_anything(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    spec = ScorerSpec(weighted=[{"model": "gold"}, {"url": "http://localhost:1/x", "token_env": "REWARD_TOKEN"}])
    with pytest.raises(EnvironmentFault, match="REWARD_TOKEN"):
        open_scorer(spec, {}, context(tmp_path))


class TestIdentity:
    """What a score depends on, and nothing else."""

    def test_a_function_is_its_package_and_its_file(self, site: Path) -> None:
        spec = ScorerSpec(function="brevity")
        kind, name, package, version, content = scorer_identity(spec, {})
        assert (kind, name, package, version, len(content)) == ("registered", "brevity", "my_rewards", "1.2.0", 64)
        (site / "my_rewards" / "brevity.py").write_text(BREVITY + "# another\n")
        assert scorer_identity(spec, {})[-1] != content
        with pytest.raises(InputError, match="no installed package"):
            scorer_identity(ScorerSpec(function="gone"), {})

    def test_a_model_is_what_is_in_its_folder_wherever_that_is(self, tmp_path: Path) -> None:
        decoder(tmp_path / "one")
        before = scorer_identity(ScorerSpec(pretrained=str(tmp_path / "one")), {})
        (tmp_path / "one").rename(tmp_path / "two")
        assert scorer_identity(ScorerSpec(pretrained=str(tmp_path / "two")), {}) == before
        (tmp_path / "two" / "chat_template.jinja").write_text("{{ messages[-1].content }}")
        assert scorer_identity(ScorerSpec(pretrained=str(tmp_path / "two")), {}) != before
        hub = ScorerSpec(pretrained="org/model", revision="v2")
        assert scorer_identity(hub, {}) == ["pretrained", "org/model", "v2"]

    def test_a_sum_is_its_parts_and_weights_and_old_scorers_are_what_they_were(self, tmp_path: Path) -> None:
        inputs = {"rm": finished("rm", "reward", tmp_path)}
        spec = ScorerSpec(weighted=[{"model": "rm", "weight": 2.0}, {"url": "http://x/y", "timeout": 3.0}])
        rm = ["reward", inputs["rm"].manifest.sha256]
        assert scorer_identity(spec, inputs) == ["weighted", [2.0, rm], [1.0, ["url", "http://x/y"]]]
        assert scorer_identity(ScorerSpec(model="rm"), inputs) == rm
        assert scorer_identity(ScorerSpec(model="gold"), inputs) == ["function", "gold"]


def key(experiment: Experiment, scorer: str) -> StageKey:
    text = experiment.recipe.read_text().partition("  ask:")[0]
    ask = f"  ask: {{kind: evaluate, policies: [sft], data: rows, reward: {scorer}}}\n"
    experiment.recipe.write_text(text + ask)
    recipe = load(experiment.recipe).recipe
    node = next(node for node in nodes(recipe) if node.name == "ask")
    return Keys(recipe, REGISTRY, HashCache(None)).of(node, {name: "0" * 64 for name in node.inputs})


def test_the_key_of_a_stage_has_what_is_in_its_scorers(experiment: Experiment, site: Path) -> None:
    decoder(experiment.folder / "rm")
    (experiment.folder / "words.txt").write_text("good\t1.9\n")
    sum_of = "{weighted: [{function: brevity}, {pretrained: ./rm, weight: 2}, {lexicon: words.txt}]}"
    found = {scorer: key(experiment, scorer) for scorer in ("{function: brevity}", "{pretrained: ./rm}", sum_of)}
    assert not any(str(experiment.folder) in str(made.content) for made in found.values())
    (site / "my_rewards" / "brevity.py").write_text(BREVITY + "# another\n")
    assert key(experiment, "{pretrained: ./rm}").digest == found["{pretrained: ./rm}"].digest
    after = key(experiment, sum_of)
    assert key(experiment, "{function: brevity}").digest != found["{function: brevity}"].digest
    assert after.digest != found[sum_of].digest
    (experiment.folder / "words.txt").write_text("good\t2.0\n")
    last = key(experiment, sum_of)
    assert last.digest != after.digest
    (experiment.folder / "rm").rename(experiment.folder / "moved")
    assert key(experiment, sum_of.replace("./rm", "./moved")).digest == last.digest
    (experiment.folder / "moved").rename(experiment.folder / "rm")
    (experiment.folder / "rm" / "config.json").write_text("{}")
    assert key(experiment, sum_of).digest != last.digest
    assert key(experiment, "{pretrained: ./rm}").digest != found["{pretrained: ./rm}"].digest


RECIPE = """\
name: paid
model: {{model_name_or_path: {base}, dtype: float32, lora: {{lora_r: 8, lora_alpha: 8}}}}
data:
  pairs: {{path: toy, name: preferences, max_samples: 40, eval_fraction: 0.4}}
stages:
  ppo:
    kind: ppo
    prompts: pairs
    reward: {{weighted: [{parts}], normalise: none, missing_eos_penalty: 0.0}}
    total_episodes: 8
    rollout_batch_size: 4
    per_device_train_batch_size: 4
    num_ppo_epochs: 1
    max_new_tokens: 6
    save_steps: 1
    logging_steps: 1
"""


def paid(tmp_path: Path, parts: str, **inputs: object) -> tuple[list[dict[str, object]], float]:
    """Rows of the last rollout of a ppo stage of the recipe, and the score that it logged."""
    made = context(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tmp_path / "base", parts=parts))
    text = (tmp_path / "recipe.yaml").read_text()
    if inputs:
        text += "  reward: {kind: reward, data: pairs}\n"
        (tmp_path / "recipe.yaml").write_text(text)
    recipe = load(tmp_path / "recipe.yaml").recipe
    (tmp_path / "ppo").mkdir()
    later = replace(made, recipe=recipe, stage="ppo", kind="ppo", directory=tmp_path / "ppo")
    if inputs:
        trained(made)
    read = {"reward": finished("reward", "reward", made.directory)} if inputs else {}
    result = ppo.run(recipe.stages["ppo"], read, later)
    rows = [json.loads(line) for line in (tmp_path / "ppo" / "samples.jsonl").read_text().splitlines()]
    return rows, result.metrics["ppo/score"]


def prompt_of(row: dict[str, object]) -> tuple[Message, ...]:
    prompt = row["prompt"]
    assert isinstance(prompt, list)
    return tuple(Message(message["role"], message["content"]) for message in prompt)


def test_ppo_is_paid_by_a_function_and_a_server(tmp_path: Path, site: Path) -> None:
    with reward_server(lambda text: float(text.count("e"))) as server:
        server.replies = [Reply(503)]
        parts = f"{{function: truth, weight: 2.0}}, {{url: '{server.url}', weight: -0.25, batch_size: 3}}"
        rows, logged = paid(tmp_path, parts)
        # Two rollouts of four in requests of three and one, and the one that failed.
        assert [len(request["completions"]) for request in server.asked] == [3, 3, 1, 3, 1]
        assert rows[0]["prompt"] in [request["prompts"][0] for request in server.asked]
    expected = [
        2.0 * world.gold(prompt_of(row), str(row["completion"])) - 0.25 * str(row["completion"]).count("e")
        for row in rows
    ]
    assert [row["reward"] for row in rows] == pytest.approx(expected, abs=1e-5) and len(rows) == 4
    assert logged == pytest.approx(sum(expected) / 4, abs=1e-4)


def test_a_reward_stage_in_a_sum_starts_no_value(tmp_path: Path, site: Path, monkeypatch) -> None:
    started: list[object] = []
    trainer = ppo.PPOTrainer

    def build(*args: object, **options: object) -> object:
        started.append(options["reward_model"])
        return trainer(*args, **options)

    monkeypatch.setattr(ppo, "PPOTrainer", build)
    rows, logged = paid(tmp_path / "sum", "reward, {function: brevity, weight: 0.001}", reward=RewardArtefact())
    assert started == [None] and logged == pytest.approx(sum(float(str(row["reward"])) for row in rows) / 4, abs=1e-4)
