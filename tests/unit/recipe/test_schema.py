import json

import pytest
from pydantic import ValidationError

from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.layout import homes, spec_at, stage_specs
from prefopt.recipe.load import load
from prefopt.recipe.schema import KINDS, DPOSpec, LoraSpec, Recipe, SFTSpec


def test_every_kind_has_a_spec():
    assert tuple(stage_specs()) == KINDS


def test_keys_leave_out_what_changes_no_numbers():
    quick = DPOSpec(kind="dpo", data=("x",))
    noisy = quick.model_copy(update={"logging_steps": 1, "save_steps": 7})
    assert spec_for_key(noisy) == spec_for_key(quick)
    # The reference's log-probabilities are computed in batches of this size, and rounding follows the batch.
    assert spec_for_key(quick.model_copy(update={"per_device_eval_batch_size": 3})) != spec_for_key(quick)
    assert "logging_steps" not in spec_for_key(quick)
    assert spec_for_key(quick.model_copy(update={"beta": 0.2})) != spec_for_key(quick)


def test_keys_are_json_at_every_depth(write, good):
    recipe = load(write(good)).recipe
    said = spec_for_key(recipe)
    assert json.loads(json.dumps(said)) == said
    assert "description" not in said and "tracking" not in said
    assert "save_steps" not in said["stages"]["sft"]
    assert said["model"]["lora"]["lora_r"] == 8


def test_types_are_strict_and_whole_floats_are_whole_numbers():
    assert SFTSpec(kind="sft", data=("x",), max_steps=1e3).max_steps == 1000
    for wrong in (
        {"max_steps": True},
        {"max_steps": "5"},
        {"max_steps": 0},
        {"learning_rate": "1e-4"},
        {"seed": 2**32},
    ):
        with pytest.raises(ValidationError):
            SFTSpec(kind="sft", data=("x",), **wrong)


def test_lora_targets_take_a_list_or_a_word():
    assert LoraSpec(lora_target_modules=["q_proj"]).lora_target_modules == ("q_proj",)
    assert LoraSpec().lora_target_modules == "all-linear"


def test_layout_is_the_schema():
    assert {home.level for home in homes()["lora_r"]} == {"model.lora", "stages.NAME.lora"}
    assert homes()["beta"][0].kinds == ("dpo", "kto")
    tree = {"stages": {"x": {"kind": "dpo"}}}
    assert spec_at((), tree) is Recipe
    assert spec_at(("stages", "x"), tree) is DPOSpec
    assert spec_at(("model", "lora"), tree) is LoraSpec
    assert spec_at(("stages", "y"), tree) is None


def test_json_schema_lets_a_name_stand_for_a_list():
    data = Recipe.model_json_schema()["$defs"]["DPOSpec"]["properties"]["data"]
    assert {option["type"] for option in data["anyOf"]} == {"string", "array"}
