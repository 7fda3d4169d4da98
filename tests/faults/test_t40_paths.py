"""Names and paths that point elsewhere: refused, and nothing outside of the run folder is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefopt.cli.app import run_command
from prefopt.errors import IntegrityError, PrefoptError
from prefopt.recipe.load import load
from prefopt.store import manifest as manifests
from prefopt.store.manifest import safe_path
from prefopt.store.run import RunDirectory

NAMES = [
    "../x", "/abs", "a/b", "..", ".", "", "a\0b", "a;rm -rf x", "a\nb", "a b", "a\u2215b", "a\uff0fb", "-x", "~",
    "$(x)", "z" * 300, "\u202ex", "con:", "a\\b", ".hidden",
]  # fmt: skip
RECIPE = """\
name: {name}
model: {{model_name_or_path: base}}
data: {{{data}: {{path: toy, name: corpus}}}}
stages: {{{stage}: {{kind: pretrain, data: {data}}}, base: {{kind: pretrain, data: {data}}}}}
"""


def quoted(text: str) -> str:
    import json

    return json.dumps(text)


@pytest.mark.parametrize("place", ["name", "stage"])
@pytest.mark.parametrize("name", NAMES)
def test_t40_a_name_that_is_no_name_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    recipe = inside / "recipe.yaml"
    parts = {"name": "run", "stage": "one", "data": "texts", place: quoted(name)}
    recipe.write_text(RECIPE.format(**parts))
    before = sorted(tmp_path.rglob("*"))
    assert run_command(["run", str(recipe)]) == 2
    assert "recipe.yaml:" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_t40_a_good_name_is_not_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(name="run", stage="one", data="texts"))
    assert load(recipe).recipe.name == "run"


@pytest.mark.parametrize("name", [name for name in NAMES if "@" not in name])
def test_t40_no_folder_of_a_run_leaves_it(tmp_path: Path, name: str) -> None:
    run = RunDirectory(tmp_path)
    for asked in (run.stage_root, run.log_file, lambda text: run.stage(text, "a" * 64), run.stage_lock):
        with pytest.raises(IntegrityError):
            asked(name)
    with pytest.raises(IntegrityError):
        run.stage("sft", name)


@pytest.mark.parametrize(
    "path", [n for n in NAMES if "/" in n or "\\" in n or n in ("..", ".", "")] + ["a\0b", "a/../b"]
)
def test_t40_a_manifest_cannot_name_a_file_elsewhere(path: str) -> None:
    if path == "a/b":
        assert safe_path(path) == path
    else:
        with pytest.raises(IntegrityError):
            safe_path(path)


def test_t40_a_link_out_of_an_artefact_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    folder = tmp_path / "artefact"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").symlink_to(secret)
    header = manifests.Manifest("sft", "sft", "a" * 64, 0)
    with pytest.raises(IntegrityError, match="link"):
        manifests.commit(folder, header, ["adapter"])


def test_t40_a_loop_of_links_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(loop)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(name="run", stage="one", data="texts").replace("path: toy", "path: ./loop"))
    assert run_command(["check", str(recipe)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    recipe.write_text(RECIPE.format(name="run", stage="one", data="texts"))
    assert run_command(["run", str(recipe), "--out", str(loop / "x")]) == 3
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises((PrefoptError, OSError)):
        os.stat(loop)
