"""A recipe with `rounds` in a run: its stages by round, the file that is left, and what becomes stale."""

from __future__ import annotations

import json

import pytest
import yaml
from experiment import Experiment, states

from prefopt.errors import InputError
from prefopt.recipe.load import load


@pytest.fixture
def iterated(experiment: Experiment) -> Experiment:
    """`other` and `dpo`, twice: the second dpo starts from the first."""
    text = experiment.recipe.read_text().replace("data: rows, init: sft", "data: rows, init: other")
    text = text.replace("other: {kind: sft,", "other: {kind: sft, init: sft,")
    experiment.recipe.write_text(text + "rounds: {count: 2, stages: [other, dpo], carry: {sft: dpo}}\n")
    return experiment


def test_rounds_run_one_after_the_other(iterated: Experiment) -> None:
    assert states(iterated.run()) == dict.fromkeys(("base", "sft", "other@1", "dpo@1", "other@2", "dpo@2"), "done")
    starts = [line.split()[0] for line in iterated.lines() if " start " in line]
    assert starts == ["base", "sft", "other@1", "dpo@1", "other@2", "dpo@2"]
    assert iterated.adapter("dpo@1").read_text() != iterated.adapter("dpo@2").read_text()
    assert {stage.stage: stage.state for stage in iterated.status().stages} == dict.fromkeys(starts, "done")
    assert set(states(iterated.run()).values()) == {"skipped"}


def test_the_run_folder_keeps_the_rounds_as_they_were_written(iterated: Experiment) -> None:
    iterated.run("stages.dpo.beta=0.3", only=("base", "sft"))
    kept = yaml.safe_load((iterated.out / "recipe.yaml").read_text())
    assert list(kept["stages"]) == ["base", "sft", "other", "dpo"] and kept["stages"]["dpo"]["beta"] == 0.3
    assert kept["rounds"] == {"count": 2, "stages": ["other", "dpo"], "carry": {"sft": "dpo"}}
    again = load(iterated.out / "recipe.yaml").recipe
    assert again == load(iterated.recipe, ["stages.dpo.beta=0.3"]).recipe.model_copy(update={"data": again.data})


def test_one_round_can_be_run_alone(iterated: Experiment) -> None:
    with pytest.raises(InputError, match="dpo@1, which is not done"):
        iterated.run(only=("other@2",))
    iterated.run(only=("base", "sft", "other@1", "dpo@1"))
    assert states(iterated.run(only=("other@2",)))["other@2"] == "done"
    with pytest.raises(InputError, match="no stage 'dpo'"):
        iterated.run(only=("dpo",))


def test_more_rounds_keep_those_that_are_done(iterated: Experiment) -> None:
    iterated.run()
    summary = iterated.run("rounds.count=3")
    assert [name for name, state in states(summary).items() if state == "done"] == ["other@3", "dpo@3"]


def test_a_change_of_the_stage_is_a_change_of_every_round(iterated: Experiment) -> None:
    iterated.run()
    plan = iterated.run("stages.dpo.beta=0.9", dry_run=True)
    assert [outcome.stage for outcome in plan.stages if outcome.state != "done"] == ["dpo@1", "other@2", "dpo@2"]
    assert json.dumps(plan.to_json())
