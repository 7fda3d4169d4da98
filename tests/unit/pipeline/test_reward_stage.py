"""The reward stage in this process: where it starts, what it leaves, and what later stages open of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefopt.data.load import load_pairs
from prefopt.errors import InputError
from prefopt.models.roles import save_adapter
from prefopt.pipeline.context import Inputs, StageContext, StageInput, StopFlag
from prefopt.pipeline.scoring import open_scorer
from prefopt.pipeline.stages import reward
from prefopt.recipe.schema import Recipe, RewardSpec
from prefopt.recipe.scorers import ScorerSpec
from prefopt.rewards.scorers import GoldScorer, LexiconScorer
from prefopt.store.manifest import Manifest
from tests.tiny import save_tiny_base, tiny_policy

SPEC = {
    "kind": "reward",
    "init": "sft",
    "data": "pairs",
    "max_steps": 2,
    "save_steps": 2,
    "learning_rate": 1e-9,
    "per_device_train_batch_size": 2,
    "max_length": 512,
}


def recipe(directory: Path, eval_fraction: float) -> Recipe:
    save_tiny_base(directory / "base")
    pairs = {"path": "toy", "name": "preferences", "max_samples": 40, "eval_fraction": eval_fraction}
    stages = {"sft": {"kind": "sft", "data": "pairs"}, "reward": SPEC}
    model = {"model_name_or_path": str(directory / "base"), "dtype": "float32", "lora": {"lora_r": 8, "lora_alpha": 8}}
    return Recipe.model_validate({"name": "r", "model": model, "data": {"pairs": pairs}, "stages": stages})


def context(directory: Path, eval_fraction: float = 0.4) -> StageContext:
    (directory / "stage").mkdir(parents=True)
    return StageContext(
        recipe=recipe(directory, eval_fraction),
        stage="reward",
        kind="reward",
        key="0" * 64,
        directory=directory / "stage",
        seed=17,
        run_name="r",
        cache=directory / "cache",
        ledger=directory / "ledger",
        allow_inexact_resume=False,
        trust_remote_code=False,
        progress=lambda step, total, metrics: None,
        log=lambda line: None,
        stop=StopFlag(),
    )


def finished(stage: str, kind: str, directory: Path) -> StageInput:
    return StageInput(stage, kind, directory, Manifest(stage=stage, kind=kind, key="1" * 64, seed=17))


def sft(directory: Path) -> Inputs:
    policy = tiny_policy()  # of rank 4, where the recipe says 8
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_adapter(policy, "policy", directory / "sft" / "adapter", "base")
    return {"sft": finished("sft", "sft", directory / "sft")}


def test_it_starts_from_the_adapter_of_init_and_later_stages_score_as_it_did(tmp_path: Path) -> None:
    made, inputs = context(tmp_path), sft(tmp_path)
    result = reward.run(RewardSpec.model_validate(SPEC), inputs, made)
    assert all((made.directory / output).exists() for output in result.outputs)
    start, end = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (tmp_path / "sft", made.directory))
    # At this rate two steps move no weight that anyone could see, so what is saved is what it started from.
    assert set(end) - set(start) == {"base_model.model.score.weight"}
    assert all(torch.allclose(end[name], tensor, atol=1e-6) for name, tensor in start.items())

    held_out = load_pairs(("pairs",), made.recipe.data, made.recipe.seed).eval
    told = [json.loads(line) for line in (made.directory / "scores.jsonl").read_text().splitlines()]
    later = replace(made, stage="eval", kind="evaluate")
    inputs = {**inputs, "reward": finished("reward", "reward", made.directory)}
    scorer = open_scorer(ScorerSpec(model="reward"), inputs, later)
    for name in ("chosen", "rejected"):
        found = scorer.score([pair.prompt for pair in held_out], [getattr(pair, name) for pair in held_out])
        assert [score.value for score in found] == pytest.approx([row[name] for row in told], abs=1e-4)

    right = sum(row["chosen"] > row["rejected"] for row in told)
    assert result.metrics["reward/accuracy/mean"] == pytest.approx(right / len(held_out))
    assert result.metrics["reward/accuracy/ci_low"] < right / len(held_out) < result.metrics["reward/accuracy/ci_high"]
    table = json.loads((made.directory / "table.json").read_text())
    assert table["rows"][0][:2] == ["reward", str(len(held_out))] and len(table["columns"]) == len(table["rows"][0])


def test_without_held_out_pairs_it_trains_and_measures_nothing(tmp_path: Path) -> None:
    made = context(tmp_path, eval_fraction=0.0)
    result = reward.run(RewardSpec.model_validate(SPEC), sft(tmp_path), made)
    assert not [name for name in result.metrics if name.startswith("reward/accuracy/")]
    assert json.loads((made.directory / "table.json").read_text())["rows"] == []
    assert (made.directory / "scores.jsonl").read_text() == ""


def test_what_judges_is_opened_by_what_the_recipe_names(tmp_path: Path) -> None:
    made = context(tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("good\t1.0\n")
    assert isinstance(open_scorer(ScorerSpec(model="gold"), {}, made), GoldScorer)
    assert isinstance(open_scorer(ScorerSpec(lexicon=str(words)), {}, made), LexiconScorer)
    with pytest.raises(InputError, match="sft is of kind sft"):
        open_scorer(ScorerSpec(model="sft"), sft(tmp_path), made)
