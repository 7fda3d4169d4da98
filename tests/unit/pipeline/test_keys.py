from __future__ import annotations

from pathlib import Path

import pytest
from experiment import REGISTRY, Experiment

from prefopt.errors import InputError
from prefopt.pipeline import keys as keys_module
from prefopt.pipeline.graph import and_after, nodes
from prefopt.pipeline.keys import Keys, StageKey, changes, save_key
from prefopt.pipeline.stages import Registry
from prefopt.recipe.load import load
from prefopt.store.hashing import HashCache


def key(experiment: Experiment, stage: str, *overrides: str, registry: Registry = REGISTRY) -> StageKey:
    recipe = load(experiment.recipe, overrides).recipe
    node = next(node for node in nodes(recipe) if node.name == stage)
    return Keys(recipe, registry, HashCache(None)).of(node, {name: "0" * 64 for name in node.inputs})


@pytest.mark.parametrize(
    "override",
    ["stages.dpo.beta=0.2", "stages.dpo.seed=4", "seed=4", "model.lora.lora_r=8", "data.rows.max_samples=1",
     "stages.dpo.max_steps=3", "data.rows.eval_fraction=0.5"],
)  # fmt: skip
def test_what_changes_numbers_changes_the_key(experiment: Experiment, override: str) -> None:
    assert key(experiment, "dpo", override).digest != key(experiment, "dpo").digest


@pytest.mark.parametrize(
    "override",
    ["stages.dpo.logging_steps=3", "stages.dpo.save_steps=3", "stages.sft.learning_rate=1.0", "description=x",
     "tracking.wandb.project=x", "stages.dpo.seed=3", "name=other"],
)  # fmt: skip
def test_what_changes_no_numbers_of_the_stage_does_not(experiment: Experiment, override: str) -> None:
    assert key(experiment, "dpo", override).digest == key(experiment, "dpo").digest


def test_the_base_model_counts_only_where_it_is_used(experiment: Experiment) -> None:
    assert key(experiment, "base", "model.lora.lora_r=8").digest == key(experiment, "base").digest


def test_moving_everything_changes_no_key_and_other_content_does(experiment: Experiment) -> None:
    before = key(experiment, "sft").digest
    moved = experiment.folder / "elsewhere"
    moved.mkdir()
    for name in ("recipe.yaml", "rows.jsonl"):
        (moved / name).write_bytes((experiment.folder / name).read_bytes())
    other = Experiment(moved)
    assert key(other, "sft").digest == before
    (moved / "rows.jsonl").write_text((moved / "rows.jsonl").read_text().replace("yes", "yea"))
    assert key(other, "sft").digest != before


def test_a_local_model_counts_by_content(experiment: Experiment) -> None:
    model = experiment.folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    text = experiment.recipe.read_text().replace("model_name_or_path: base", f"model_name_or_path: {model}")
    experiment.recipe.write_text(text)
    before = key(experiment, "sft")
    assert str(experiment.folder) not in str(before.content)
    (model / "config.json").write_text("{ }")
    assert key(experiment, "sft").digest != before.digest


@pytest.mark.parametrize(
    ("stage", "moved"),
    [
        ("kind: evaluate, policies: [sft], data: rows, reward: {lexicon: words.txt}", "reward.lexicon=lists/moved.txt"),
        (
            "kind: distill, init: sft, prompts: rows, demonstrations: rows, target: argmax, "
            "keep: {costs: [{cost: banned, lexicon: words.txt}]}",
            "keep.costs=[{cost: banned, lexicon: lists/moved.txt}]",
        ),
    ],
)
def test_a_word_list_counts_by_content(experiment: Experiment, stage: str, moved: str) -> None:
    experiment.recipe.write_text(f"{experiment.recipe.read_text()}  ask: {{{stage}}}\n")
    words = experiment.folder / "words.txt"
    words.write_text("good\t1.9\n")
    before = key(experiment, "ask")
    assert str(experiment.folder) not in str(before.content)
    (experiment.folder / "lists").mkdir()
    words.rename(experiment.folder / "lists" / "moved.txt")
    assert key(experiment, "ask", f"stages.ask.{moved}").digest == before.digest
    words.write_text("good\t2.1\n")
    assert key(experiment, "ask").digest != before.digest


def test_the_revision_of_the_code_and_major_versions_count(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(experiment, "dpo").digest
    assert key(experiment, "dpo", registry=Registry(revisions={"dpo": 99})).digest != before
    versions = {"torch": "9.1.3"}
    monkeypatch.setattr(keys_module, "library_versions", lambda: versions)
    old = key(experiment, "dpo")
    versions["torch"] = "9.1.4"
    assert key(experiment, "dpo").digest == old.digest
    versions["torch"] = "9.2.0"
    assert key(experiment, "dpo").digest != old.digest


def test_changes_are_told_as_a_person_would(experiment: Experiment, tmp_path: Path) -> None:
    old = key(experiment, "dpo")
    save_key(tmp_path / "old", old)
    assert changes(tmp_path / "old", old) == []
    new = key(experiment, "dpo", "stages.dpo.learning_rate=2.5e-5", "stages.dpo.beta=0.2", "model.lora.lora_r=8")
    assert changes(tmp_path / "old", new) == [
        "beta 0.1 → 0.2",
        "learning_rate 5e-5 → 2.5e-5",
        "model.lora.lora_r 16 → 8",
    ]
    assert changes(tmp_path / "none", new) == []


def test_every_stage_comes_after_what_it_reads(experiment: Experiment) -> None:
    text = experiment.recipe.read_text()
    head, stages = text.split("stages:\n")
    experiment.recipe.write_text(head + "stages:\n" + "\n".join(reversed(stages.strip("\n").split("\n"))) + "\n")
    graph = nodes(load(experiment.recipe).recipe)
    seen: set[str] = set()
    for node in graph:
        assert seen.issuperset(node.inputs)
        seen.add(node.name)
    assert seen == {"base", "sft", "other", "dpo"}
    assert and_after(graph, "sft") == {"sft", "dpo"}
    assert and_after(graph, "base") == seen


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="'audit'"):
        Registry().revision("audit")
