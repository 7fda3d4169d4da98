from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from experiment import REGISTRY, Experiment, states

import prefopt
from prefopt.errors import RecipeError, TrainingDiverged
from prefopt.pipeline.summary import RunOptions

OPTIONS = RunOptions(registry=REGISTRY, report=False)


def test_a_recipe_made_in_python_gives_what_the_file_gives(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiment.folder)
    recipe = prefopt.Recipe.model_validate(
        {
            "name": "fake",
            "seed": 3,
            "model": {"model_name_or_path": "base"},
            "data": {"rows": {"path": "rows.jsonl", "format": "preference"}},
            "stages": {"base": {"kind": "pretrain", "data": "rows"}, "sft": {"kind": "sft", "data": "rows"}},
        }
    )
    summary = prefopt.run(recipe, options=OPTIONS, quiet=True)
    assert summary.directory == Path("runs/fake")
    assert states(summary) == {"base": "done", "sft": "done"}
    again = prefopt.run(experiment.recipe, out="runs/fake", options=OPTIONS, quiet=True)
    assert states(again) == {"base": "skipped", "sft": "skipped", "other": "done", "dpo": "done"}


def test_a_word_list_of_a_recipe_made_in_python_lies_in_the_working_folder(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiment.folder)
    Path("words.txt").write_text("good\t1.9\n")
    ask = {"kind": "evaluate", "policies": "base", "prompts": "rows", "reward": {"lexicon": "words.txt"}}
    banned = {"cost": "banned", "lexicon": "words.txt"}
    paid = {"lexicon": "words.txt", "penalties": [{**banned, "weight": 1.0}]}
    ask["costs"] = [banned]
    recipe = prefopt.Recipe.model_validate(
        {
            "name": "fake",
            "model": {"model_name_or_path": "base"},
            "data": {"rows": {"path": "rows.jsonl", "format": "preference"}},
            "stages": {
                "base": {"kind": "pretrain", "data": "rows"},
                "ask": ask,
                "learn": {"kind": "ppo", "prompts": "rows", "reward": paid},
            },
        }
    )
    options = replace(OPTIONS, only=("base", "ask"))
    assert states(prefopt.run(recipe, options=options, quiet=True)) == {
        "base": "done",
        "ask": "done",
        "learn": "not selected",
    }
    assert Path("runs/fake/recipe.yaml").read_text().count(str(experiment.folder / "words.txt")) == 4


def test_errors_are_raised_and_finished_work_is_kept(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 2, "what": "diverge"}})
    with pytest.raises(TrainingDiverged, match="loss is nan"):
        prefopt.run(experiment.recipe, out=experiment.out, options=OPTIONS, quiet=True)
    assert experiment.adapter("other").exists()


def test_a_recipe_made_in_python_is_checked_like_a_file(experiment: Experiment) -> None:
    recipe = prefopt.Recipe.model_validate(
        {
            "name": "fake",
            "model": {"model_name_or_path": "base"},
            "stages": {"sft": {"kind": "sft", "data": "nothing"}},
        }
    )
    with pytest.raises(RecipeError, match="nothing"):
        prefopt.run(recipe, out=experiment.out, options=OPTIONS)
    assert not experiment.out.exists()


def test_the_callers_environment_stays_as_it_was(experiment: Experiment) -> None:
    before = dict(os.environ)
    prefopt.run(experiment.recipe, out=experiment.out, options=OPTIONS, quiet=True)
    assert dict(os.environ) == before
