import json
import os

from prefopt.cli.app import run_command
from prefopt.recipe.bundled import beside, bundled_recipes


def test_new_copies_and_never_overwrites(capsys, tmp_path):
    recipe = bundled_recipes()[0]
    folder = tmp_path / "a" / "b"
    assert run_command(["new", recipe.name, str(folder)]) == 0
    copy = folder / recipe.path.name
    assert copy.read_bytes() == recipe.path.read_bytes()
    assert os.access(copy, os.X_OK) == os.access(recipe.path, os.X_OK)
    copy.write_text("mine")
    assert run_command(["new", recipe.name, str(folder)]) == 2
    assert copy.read_text() == "mine"
    assert "not overwritten" in capsys.readouterr().err


def test_new_brings_the_data_that_lies_beside_a_recipe(capsys, tmp_path):
    recipe = next(recipe for recipe in bundled_recipes() if beside(recipe.path))
    assert run_command(["new", recipe.name, str(tmp_path)]) == 0
    for source in beside(recipe.path):
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {recipe.path.name, *(p.name for p in beside(recipe.path))}


def test_new_takes_a_folder_only(capsys, tmp_path):
    recipe = bundled_recipes()[0]
    assert run_command(["new", recipe.name, str(tmp_path / "mine.yaml")]) == 2
    assert "not a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_new_suggests(capsys):
    name = bundled_recipes()[0].name
    assert run_command(["new", name + "z"]) == 2
    assert f"did you mean '{name}'?" in capsys.readouterr().err


def test_recipes_lists_them_all(capsys):
    assert run_command(["recipes"]) == 0
    out = capsys.readouterr().out
    assert run_command(["recipes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for recipe, listed in zip(bundled_recipes(), document["recipes"], strict=True):
        assert f"\n{recipe.name} " in out and recipe.description in out
        assert listed["name"] == recipe.name


def test_schema_is_json_schema(capsys):
    assert run_command(["schema"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["$schema"].startswith("https://json-schema.org/")
    assert document["additionalProperties"] is False
    assert set(document["required"]) == {"name", "model", "stages"}
