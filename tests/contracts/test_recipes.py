"""Every bundled recipe can be run and has its page; every command of the contract answers or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.cli.app import LATER_VERBS, VERBS, run_command
from prefopt.recipe.load import load
from tests.end_to_end.small import ROOT

# Beside them lie the configurations of accelerate, which are no recipes.
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
# The table of commands in the design's contract.
COMMANDS = ["run", "check", "status", "new", "recipes", "audit", "collect", "annotate", "evaluate", "compare", "report"]
COMMANDS += ["release", "export", "sample", "schema"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that look like the data and models that the variables of recipes name."""
    (tmp_path / "stories260k-hf").mkdir()
    (tmp_path / "stories260k-hf" / "config.json").write_text("{}")
    (tmp_path / "hh-rlhf-harmless").mkdir()
    (tmp_path / "hh-rlhf-harmless" / "test.jsonl.gz").write_bytes(b"")
    (tmp_path / "vader-sentiment").mkdir()
    (tmp_path / "vader-sentiment" / "vader_lexicon.txt").write_text("good\t1.9\n")
    for name in ("PREFOPT_DATA", "PREFOPT_MODELS"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_without_a_warning_and_is_a_program(path: Path) -> None:
    loaded = load(path)
    assert loaded.warnings == () and loaded.recipe.name == path.stem and loaded.recipe.description
    assert loaded.text.startswith("#!/usr/bin/env -S prefopt run\n")
    assert path.stat().st_mode & 0o111, "not executable"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_a_page_that_names_it(path: Path) -> None:
    page = ROOT / "docs" / "recipes" / f"{path.stem}.md"
    assert page.is_file() and f"recipes/{path.name}" in page.read_text(encoding="utf-8")


def test_no_page_is_about_a_recipe_that_is_gone() -> None:
    pages = {page.stem for page in (ROOT / "docs" / "recipes").glob("*.md")} - {"README"}
    assert pages == {path.stem for path in RECIPES}


def test_the_commands_are_those_of_the_contract() -> None:
    assert sorted([*VERBS, *LATER_VERBS]) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself_or_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command([command, "--help"])
    said = capsys.readouterr()
    if command in VERBS:
        assert code == 0 and f"prefopt {command}" in said.out and said.err == ""
    else:
        assert code == 2 and f"'{command}' is not in this version" in said.err and said.out == ""
