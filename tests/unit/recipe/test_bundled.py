import pytest

from prefopt.errors import InputError
from prefopt.recipe.bundled import bundled_recipe, bundled_recipes, describe
from prefopt.recipe.load import load


def test_every_bundled_recipe_is_valid_and_described(tmp_path, monkeypatch):
    (tmp_path / "stories260k-hf").mkdir()
    (tmp_path / "stories260k-hf" / "config.json").write_text("{}")
    (tmp_path / "hh-rlhf-harmless").mkdir()
    (tmp_path / "hh-rlhf-harmless" / "test.jsonl.gz").write_bytes(b"")
    (tmp_path / "vader-sentiment").mkdir()
    (tmp_path / "vader-sentiment" / "vader_lexicon.txt").write_text("good\t1.9\n")
    monkeypatch.setenv("PREFOPT_DATA", str(tmp_path))
    monkeypatch.setenv("PREFOPT_MODELS", str(tmp_path))
    recipes = bundled_recipes()
    assert recipes
    for recipe in recipes:
        assert recipe.description, recipe.name
        assert load(recipe.path).warnings == (), recipe.name


def test_wrong_name_has_a_suggestion():
    name = bundled_recipes()[0].name
    assert bundled_recipe(f"{name}.yaml").name == name
    with pytest.raises(InputError, match=f"did you mean '{name}'"):
        bundled_recipe(name[:-1] + "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/usr/bin/env -S prefopt run\n# First.\n# Second.\nname: x\n", "First."),
        ("# Comment.\nname: x\ndescription: |\n  Said.\n  More.\n", "Said."),
        ("name: x\n# Later.\n", ""),
    ],
)
def test_description_is_the_key_or_the_first_comment(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert describe(path) == said
