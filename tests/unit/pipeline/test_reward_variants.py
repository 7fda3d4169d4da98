"""Reward stages of every shape in this process: what they leave, and what later stages open of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefopt.data.load import load_pairs
from prefopt.errors import DataError, IntegrityError, Interrupted
from prefopt.models.reward_artefact import RewardArtefact, open_reward, read_artefact, write_artefact
from prefopt.pipeline.context import StageContext, StageResult, StopFlag
from prefopt.pipeline.scoring import open_scorer
from prefopt.pipeline.stages import ppo, reward
from prefopt.recipe.load import load
from prefopt.recipe.schema import DataSpec, PPOSpec, RewardSpec
from prefopt.recipe.scorers import ScorerSpec
from prefopt.records import PreferencePair, Score
from prefopt.rewards.model import RewardModelScorer
from tests.tiny import tiny_llama
from tests.unit.pipeline.test_reward_stage import SPEC, context, finished

TRAINED = {key: value for key, value in SPEC.items() if key != "init"} | {"learning_rate": 3e-3, "max_steps": 4}


def trained(made: StageContext, **more: object) -> StageResult:
    torch.manual_seed(made.seed)  # as the stage's process does
    return reward.run(RewardSpec.model_validate({**TRAINED, **more}), {}, made)


def scorer_of(made: StageContext) -> RewardModelScorer:
    inputs = {"reward": finished("reward", "reward", made.directory)}
    scorer = open_scorer(ScorerSpec(model="reward"), inputs, replace(made, stage="eval", kind="evaluate"))
    assert isinstance(scorer, RewardModelScorer)
    return scorer


def held_out_of(made: StageContext) -> list[PreferencePair]:
    return load_pairs(("pairs",), made.recipe.data, made.recipe.seed).eval


def scored(made: StageContext, pairs: list[PreferencePair], side: str) -> list[Score]:
    return scorer_of(made).score([pair.prompt for pair in pairs], [getattr(pair, side) for pair in pairs])


def lines(made: StageContext) -> list[dict[str, float]]:
    return [json.loads(line) for line in (made.directory / "scores.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["adapters", "heads"])
def test_a_calibrated_ensemble_scores_later_as_it_did(tmp_path: Path, kind: str) -> None:
    made = context(tmp_path)
    result = trained(made, ensemble=2, ensemble_kind=kind, calibrate=True)
    assert all((made.directory / output).exists() for output in result.outputs)
    assert ("members/1/adapter" in result.outputs) == (kind == "adapters")
    artefact = read_artefact(made.directory)
    assert artefact.temperature == result.metrics["calibration/temperature"] and len(artefact.offsets) == 2
    assert sum(artefact.offsets) == pytest.approx(0, abs=1e-6)
    assert -1 < result.metrics["reward/member_correlation"] < 0.9999

    pairs, told = held_out_of(made), lines(made)
    found = {side: scored(made, pairs, side) for side in ("chosen", "rejected")}
    for side, scores in found.items():
        assert [score.value for score in scores] == pytest.approx([row[side] for row in told], abs=1e-4)
        assert [score.std for score in scores] == pytest.approx([row[f"{side}_std"] for row in told], abs=1e-4)
        assert min(score.std for score in scores) >= 0 < max(score.std for score in scores)
    margins = [a.value - b.value for a, b in zip(found["chosen"], found["rejected"], strict=True)]
    scorer = scorer_of(made)
    assert scorer.temperature == artefact.temperature
    sides = ([pair.prompt for pair in pairs], [pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    assert scorer.preference(*sides) == pytest.approx(torch.tensor(margins).sigmoid().tolist(), abs=1e-4)
    right = sum(margin > 0 for margin in margins) / len(margins)
    assert result.metrics["reward/accuracy/mean"] == pytest.approx(right)
    table = json.loads((made.directory / "table.json").read_text())["rows"]
    assert [row[0] for row in table] == ["reward", "reward, member 1", "reward, member 2"]
    assert table[0][2].startswith(f"{right:.1%}")


def test_the_first_member_is_the_model_without_an_ensemble_and_a_temperature_divides_its_head(tmp_path: Path) -> None:
    alone, many, calibrated = (context(tmp_path / name) for name in ("alone", "many", "calibrated"))
    trained(alone)
    result = trained(many, ensemble=2)
    temperature = trained(calibrated, calibrate=True).metrics["calibration/temperature"]
    first, same, divided = (
        load_file(made.directory / "adapter" / "adapter_model.safetensors") for made in (alone, many, calibrated)
    )
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    other = load_file(many.directory / "members" / "1" / "adapter" / "adapter_model.safetensors")
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items())
    assert "reward/member_correlation" in result.metrics and "calibration/temperature" not in result.metrics
    head = "base_model.model.score.weight"
    assert torch.allclose(divided[head] * temperature, first[head], rtol=1e-5)
    assert all(torch.equal(tensor, divided[name]) for name, tensor in first.items() if name != head)
    assert read_artefact(alone.directory) == RewardArtefact()


def test_copies_of_one_member_score_as_it_does_and_agree(tmp_path: Path) -> None:
    made = context(tmp_path)
    trained(made)
    pairs = held_out_of(made)
    single = scored(made, pairs, "chosen")
    assert {score.std for score in single} == {0.0}
    write_artefact(made.directory, RewardArtefact(("adapter",) * 3))
    assert scored(made, pairs, "chosen") == single


def test_what_an_interrupted_ensemble_had_trained_it_does_not_train_again(tmp_path: Path) -> None:
    whole, parts = context(tmp_path / "whole"), context(tmp_path / "parts")
    trained(whole, ensemble=2)
    seen: list[tuple[int, int]] = []

    def progress(step: int, total: int, metrics: object) -> None:
        seen.append((step, total))
        if step == 6:  # of 8: in the middle of the second member
            parts.stop.set()

    stopping = replace(parts, progress=progress)
    with pytest.raises(Interrupted):
        trained(stopping, ensemble=2)
    assert seen == [(step, 8) for step in range(1, 7)]
    resumed = replace(parts, stop=StopFlag(), progress=lambda step, total, metrics: seen.append((step, total)))
    trained(resumed, ensemble=2)
    assert seen[6:] == [(7, 8), (8, 8)]
    for folder in ("adapter", "members/1/adapter"):
        first, second = (load_file(made.directory / folder / "adapter_model.safetensors") for made in (whole, parts))
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert lines(parts) == lines(whole)


def with_rows(made: StageContext, path: Path, **columns: object) -> StageContext:
    """The same stage on a file whose rows have more columns."""
    rows = [
        {"prompt": f"what is thing {n}?", "chosen": f"it is {n}", "rejected": f"no {n}", **columns} for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"pairs": DataSpec(path=str(path), eval_fraction=0.4)}
    return replace(made, recipe=made.recipe.model_copy(update={"data": data}))


def test_a_second_axis_comes_with_the_score_by_name(tmp_path: Path) -> None:
    made = with_rows(context(tmp_path), tmp_path / "rows.jsonl", axes={"safe": 0.0})
    result = trained(made, second_axis="safe", ensemble=2, max_steps=30, calibrate=True)
    assert result.metrics["eval/reward/second_accuracy"] > 0.9 and result.metrics["reward/accuracy/mean"] > 0.9
    pairs = held_out_of(made)
    chosen, rejected = (scored(made, pairs, side) for side in ("chosen", "rejected"))
    assert read_artefact(made.directory).axes == ("reward", "safe")
    for a, b in zip(chosen, rejected, strict=True):
        assert set(a.axes) == {"safe"} and a.value > b.value and a.axes["safe"] < b.axes["safe"]
    assert [score.value for score in chosen] == pytest.approx([row["chosen"] for row in lines(made)], abs=1e-4)


def test_a_regression_head_scores_in_the_unit_of_the_ratings(tmp_path: Path) -> None:
    made = with_rows(context(tmp_path), tmp_path / "rows.jsonl", score_chosen=9.0, score_rejected=5.0)
    result = trained(made, head="regression", max_steps=40)
    assert result.metrics["reward/rating_explained_variance"] > 0.8
    pairs = held_out_of(made)
    values = {side: torch.tensor([s.value for s in scored(made, pairs, side)]) for side in ("chosen", "rejected")}
    assert values["chosen"].mean().item() == pytest.approx(9, abs=1) and read_artefact(made.directory).origin == 7
    assert values["rejected"].mean().item() == pytest.approx(5, abs=1)
    assert values["chosen"].tolist() == pytest.approx([row["chosen"] for row in lines(made)], abs=1e-4)


def test_what_cannot_be_calibrated_or_described_is_refused(tmp_path: Path) -> None:
    made = context(tmp_path, eval_fraction=0.0)
    with pytest.raises(DataError, match="'calibrate' needs held-out pairs, and pairs have none"):
        trained(made, calibrate=True)
    trained(made)
    with pytest.raises(IntegrityError, match="outputs do not fit"):
        write_artefact(made.directory, RewardArtefact(axes=("reward", "safe")))
        open_reward(tiny_llama(), made.directory)
    (made.directory / "reward.json").write_text("{}")
    with pytest.raises(IntegrityError, match="does not describe a reward model"):
        read_artefact(made.directory)


@pytest.mark.parametrize("options", [{"ensemble": 2}, {"ensemble": 2, "ensemble_kind": "heads"}])
def test_ppo_is_paid_by_an_ensemble(tmp_path: Path, options: dict[str, object]) -> None:
    made = context(tmp_path)
    trained(made, **options)
    stage = {"kind": "ppo", "prompts": "pairs", "reward": "reward", "total_episodes": 4, "rollout_batch_size": 4}
    small = {"max_new_tokens": 4, "per_device_train_batch_size": 4, "num_ppo_epochs": 1, "save_steps": 1}
    (tmp_path / "ppo").mkdir()
    later = replace(made, stage="ppo", kind="ppo", directory=tmp_path / "ppo")
    inputs = {"reward": finished("reward", "reward", made.directory)}
    result = ppo.run(PPOSpec.model_validate({**stage, **small}), inputs, later)
    rows = [json.loads(line) for line in (later.directory / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and result.cost["flops"] > 0
    mean = sum(row["reward"] for row in rows) / 4
    assert result.metrics["ppo/score"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("head: regression, calibrate: true", "'calibrate' is for choices"),
        ("head: regression, second_axis: safe", "'second_axis' is for choices"),
        ("ensemble_kind: heads", "one member is no ensemble"),
        ("effective_number_beta: 0.9, group_weights: inverse", "only `group_weights: effective_number` uses it"),
        ("group_by: longer", "without 'group_weights'"),
    ],
)
def test_options_that_mean_nothing_together_are_said(tmp_path: Path, options: str, says: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\nmodel: {model_name_or_path: m}\ndata: {pairs: {path: toy, name: preferences}}\n"
        f"stages: {{reward: {{kind: reward, data: pairs, {options}}}}}\n"
    )
    if "regression" in options:
        with pytest.raises(Exception, match=says):
            load(recipe)
    else:
        assert says in "\n".join(load(recipe).warnings)
