"""What cannot be run is refused before anything is written, in one list, with the place and the way out."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from prefopt.store.run import RunDirectory
from tests.end_to_end.small import Warm, folder, prefopt, words
from tests.tiny import save_tiny_base

MISTAKES = """\
name: wrong
model: {model_name_or_path: base, dtyp: float32}
data:
  texts: {path: toy, name: corpus}
  texts: {path: toy, name: demonstrations}
  pairs: {path: "${PREFOPT_NOWHERE}/pairs.jsonl"}
stages:
  base: {kind: pretrain, data: text}
  sft: {kind: sft, data: texts, learning_rate: -1e-4}
  dpo: {kind: dpo, data: pairs, init: stf}
  rl: {kind: audit, init: sft}
"""
ROWS = """\
name: rows
model: {model_name_or_path: base}
data: {texts: {path: rows.jsonl, format: text}}
stages: {base: {kind: pretrain, data: texts, max_steps: 1, hidden_size: 16, vocab_size: 300}}
"""


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("verb", ["run", "check"])
def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path, verb: str) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(MISTAKES)
    said = refused(prefopt(verb, recipe, cwd=tmp_path), 2)
    assert said.startswith("error: 8 problems in the recipe\n")
    expected = [
        (2, "model.dtyp: unknown key — did you mean 'dtype'?"),
        (5, "data.texts: the key is written twice, first in line 4"),
        (6, "the environment variable PREFOPT_NOWHERE is not set"),
        (8, "there is no data set 'text' — did you mean 'texts'?"),
        (9, "stages.sft.learning_rate: must be above 0"),
        (9, "'texts' holds text without prompts"),
        (10, "there is no stage 'stf' — did you mean 'sft'?"),
        (11, "kind 'audit' is not in this version"),
    ]
    for (number, text), line in zip(expected, said.splitlines()[1:], strict=True):
        assert line.startswith(f"  {recipe}:{number}: ") and text in line, line
    assert list(tmp_path.iterdir()) == [recipe]


def test_an_error_is_one_document_for_a_program(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(MISTAKES)
    done = prefopt("run", recipe, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "PREFOPT_NOWHERE" in json.dumps(json.loads(done.stdout))


@pytest.mark.parametrize("option", ["--only", "--from"])
def test_an_unknown_stage_is_refused(tmp_path: Path, out: Path, option: str) -> None:
    said = refused(prefopt(*words(out, option, "dop")), 2)
    assert "the recipe has no stage 'dop'" in said and "base, sft, pairs, reward, checks, dpo, ppo, eval" in said
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_cannot_be_is_refused(tmp_path: Path, out: Path) -> None:
    said = refused(prefopt(*words(out, "--set", "stages.dpo.beta=0", "--set", "stages.sft.lr=1")), 2)
    assert "2 problems" in said and "stages.dpo.beta" in said and "learning_rate" in said
    assert list(tmp_path.iterdir()) == []


def test_a_model_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "lost.yaml"
    recipe.write_text(
        "name: lost\nmodel:\n  model_name_or_path: ./models/tiny\ndata: {d: {path: toy, name: demonstrations}}\n"
        "stages: {sft: {kind: sft, data: d}}\n"
    )
    said = refused(prefopt("run", recipe, cwd=tmp_path), 2)
    assert f"{recipe}:3: model.model_name_or_path: there is no folder {tmp_path / 'models'}" in said
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = refused(prefopt("run", tmp_path / "none.yaml", cwd=tmp_path), 2)
    assert str(tmp_path / "none.yaml") in said


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ('{"text": "one"}\n{"text": "two\n{"text": "three"}\n', "2"),
        ('{"text": "one"}\n{"text": "two"}\n{"text": 3}\n', "3"),
        ('{"text": "one"}\n{"words": "two"}\n', "2"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, out: Path, warm: Warm, rows: str, place: str) -> None:
    recipe = tmp_path / "rows.yaml"
    recipe.write_text(ROWS)
    (tmp_path / "rows.jsonl").write_text(rows)
    done = warm.run(["run", str(recipe), "--out", str(out)])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "rows.jsonl" in line and place in line.partition("rows.jsonl")[2], line
    directory = folder(out, "base")
    assert directory is None or not (directory / "manifest.json").exists()


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (
            ["stages.sft.lora.lora_target_modules=[q_proj, v_projj]"],
            2,
            "has no module 'v_projj' — its linear layers",
        ),
        (["model.attn_implementation=flash_attention_2"], 3, "write `attn_implementation: sdpa` under 'model'"),
    ],
    ids=["module", "attention"],
)
def test_what_only_the_model_can_tell_is_told_as_a_mistake(
    tmp_path: Path, out: Path, warm: Warm, settings: list[str], code: int, said: str
) -> None:
    save_tiny_base(tmp_path / "tiny")
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(
        "name: lora\nmodel: {model_name_or_path: ./tiny, chat_template: plain, dtype: float32}\n"
        "data: {d: {path: toy, name: demonstrations, max_samples: 20}}\n"
        "stages: {sft: {kind: sft, data: d, max_steps: 1}}\n"
    )
    done = warm.run(["run", str(recipe), "--out", str(out), *(word for each in settings for word in ("--set", each))])
    assert done.returncode == code and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said in line, line


def test_a_folder_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):
        closed = Path("/sys")  # nobody makes folders there, and root may write everywhere else
    out = closed / "prefopt-test"
    start = time.monotonic()
    said = refused(prefopt(*words(out)), 3)
    assert f"cannot write {out}" in said and "--out" in said
    assert time.monotonic() - start < 5  # before anything was imported


def test_a_second_run_is_refused_at_once_and_names_the_first(out: Path) -> None:
    seconds = []
    with RunDirectory(out).lock():
        before = sorted(path.name for path in out.iterdir())
        # The best of three: the machine may be busy.
        while len(seconds) < 3 and min(seconds, default=9.0) >= 2.0:
            start = time.monotonic()
            said = refused(prefopt(*words(out)), 3)
            seconds.append(time.monotonic() - start)
        assert f"is held by process {os.getpid()} on {os.uname().nodename}, started 20" in said
        assert sorted(path.name for path in out.iterdir()) == before
    assert min(seconds) < 10.0
