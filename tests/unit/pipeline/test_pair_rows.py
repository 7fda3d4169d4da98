"""Pairs are prepared once for all who train on the same ones, and prepared again where anything decides otherwise."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.load import load_pairs
from prefopt.data.pair_encoder import PairEncoder
from prefopt.data.templates import Encoder
from prefopt.errors import DataError
from prefopt.pipeline import pair_rows as module
from prefopt.pipeline.adapters import Rows
from prefopt.pipeline.base_model import open_base
from prefopt.pipeline.context import StageContext, StopFlag
from prefopt.pipeline.pair_rows import PAIR_COLUMNS, REWARD_COLUMNS, pair_rows
from prefopt.recipe.schema import Recipe
from prefopt.trainers.reward_rows import reward_row
from prefopt.trainers.rows import pair_row
from tests.tiny import tiny_llama, tiny_tokenizer


def recipe(folder: Path, stage: dict[str, Any] | None = None, seed: int = 17, **pairs: Any) -> Recipe:
    if not (folder / "base").exists():
        tiny_llama().save_pretrained(folder / "base")
        tiny_tokenizer().save_pretrained(folder / "base")
    lines = ({"prompt": f"the lamp {n}", "chosen": f"is red {n % 3}", "rejected": "costs nine euro"} for n in range(50))
    if not (folder / "pairs.jsonl").exists():
        (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"pairs": {"path": str(folder / "pairs.jsonl"), **pairs}}
    stages = {"dpo": {"kind": "dpo", "data": "pairs", "max_length": 100, **(stage or {})}}
    model = {"model_name_or_path": str(folder / "base"), "dtype": "float32"}
    return Recipe.model_validate({"name": "r", "seed": seed, "model": model, "data": data, "stages": stages})


def context(folder: Path, of: Recipe, log: Callable[[str], None] = lambda line: None) -> StageContext:
    return StageContext(
        of, "dpo", "dpo", "0" * 64, folder / "stage", of.seed, "r", folder / "cache", folder / "ledger", False, False,
        lambda step, total, metrics: None, log, StopFlag(),
    )  # fmt: skip


def prepared(folder: Path, of: Recipe, columns: Any = PAIR_COLUMNS, **more: Any) -> Rows:
    stage = replace(context(folder, of), **more)
    spec: Any = of.stages["dpo"]
    return pair_rows(spec, {}, stage, open_base({}, stage), columns)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs were tokenised, each time."""
    counts: list[int] = []
    plain = PairEncoder.encode_pairs

    def counting(self: PairEncoder, pairs: Any) -> Any:
        counts.append(len(pairs))
        return plain(self, pairs)

    monkeypatch.setattr(PairEncoder, "encode_pairs", counting)
    return counts


@pytest.mark.parametrize(("columns", "row"), [(PAIR_COLUMNS, pair_row), (REWARD_COLUMNS, reward_row)])
def test_rows_and_counts_are_those_of_one_by_one(tmp_path, columns, row):
    of = recipe(tmp_path, eval_fraction=0.2)
    found = prepared(tmp_path, of, columns)
    loaded = load_pairs(("pairs",), of.data, 17)
    base = open_base({}, context(tmp_path, of))
    encoder = Encoder(base.tokenizer, 100)
    assert list(found.train) == [row(pair, encoder) for pair in loaded.train]
    assert list(found.evaluation) == [row(pair, encoder) for pair in loaded.eval]
    encoding = {"chat_template": base.template, **encoder.counts}
    assert found.details == {"data": loaded.report.to_json(), "encoding": encoding}


def test_a_second_stage_or_run_tokenises_nothing_and_has_equal_counts(tmp_path, encoded):
    first = prepared(tmp_path, recipe(tmp_path))
    others = [
        prepared(tmp_path, recipe(tmp_path)),
        prepared(
            tmp_path, recipe(tmp_path, {"seed": 5, "learning_rate": 1e-3, "beta": 0.5}), stage="other", key="1" * 64
        ),
        prepared(tmp_path, recipe(tmp_path, max_dropped=0.5)),
    ]
    assert encoded == [50]
    for other in others:
        assert other.details == first.details and list(other.train) == list(first.train)


def changed_template(folder: Path) -> None:
    path = folder / "base" / "tokenizer_config.json"
    if not (folder / "base" / "chat_template.jinja").exists():
        path.write_text(path.read_text().replace('"chat_template"', '"unused"'))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token if not add_generation_prompt else ' ' }}"
    (folder / "base" / "chat_template.jinja").write_text(template)


def changed_tokenizer(folder: Path) -> None:
    path = folder / "base" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))


def changed_data(folder: Path) -> None:
    path = folder / "pairs.jsonl"
    path.write_text(path.read_text().replace("red 1", "red 7", 1))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "max_length": lambda folder: recipe(folder, {"max_length": 99}),
    "seed": lambda folder: recipe(folder, seed=18),
    "overlong": lambda folder: recipe(folder, overlong="drop"),
    "eval_fraction": lambda folder: recipe(folder, eval_fraction=0.3),
    "max_samples": lambda folder: recipe(folder, max_samples=40),
    "weight": lambda folder: recipe(folder, weight=2),
    "columns": lambda folder: recipe(folder, columns={"id": "prompt", "prompt": "prompt"}),
    "template": changed_template,
    "tokenizer": changed_tokenizer,
    "data": changed_data,
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_rows_is_in_the_key(tmp_path, encoded, what):
    before = recipe(tmp_path)
    prepared(tmp_path, before)
    after = CHANGES[what](tmp_path) or before
    prepared(tmp_path, after)
    assert len(encoded) == 2 and len(list((tmp_path / "cache" / "rows").glob("[0-9a-f]*"))) == 2
    prepared(tmp_path, after)
    assert len(encoded) == 2


def test_the_columns_of_another_kind_of_stage_and_another_revision_are_other_entries(tmp_path, encoded, monkeypatch):
    prepared(tmp_path, recipe(tmp_path))
    prepared(tmp_path, recipe(tmp_path), REWARD_COLUMNS)
    monkeypatch.setattr(module, "REVISION", module.REVISION + 1)
    prepared(tmp_path, recipe(tmp_path))
    assert encoded == [50] * 3


def test_prompts_that_another_set_holds_out_are_in_the_key(tmp_path, encoded):
    def with_asked(text: str) -> Recipe:
        (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": f"{text} {n}"}) + "\n" for n in range(50)))
        of = recipe(tmp_path, eval_fraction=0)
        asked = of.data["pairs"].model_copy(update={"path": str(tmp_path / "asked.jsonl"), "eval_fraction": 0.5})
        return of.model_copy(update={"data": {**of.data, "asked": asked}})

    few = prepared(tmp_path, with_asked("the lamp"))
    assert len(few.train) < 40 and len(few.evaluation) == 0
    assert len(prepared(tmp_path, with_asked("the chair")).train) == 50
    assert encoded == [50, 50]


def test_data_that_lies_elsewhere_is_the_same_data(tmp_path, encoded):
    first = prepared(tmp_path, recipe(tmp_path))
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "pairs.jsonl", tmp_path / "moved" / "pairs.jsonl")
    of = recipe(tmp_path).model_copy(deep=True)
    spec = of.data["pairs"].model_copy(update={"path": str(tmp_path / "moved" / "pairs.jsonl")})
    second = prepared(tmp_path, of.model_copy(update={"data": {"pairs": spec}}))
    assert encoded == [50] and list(second.train) == list(first.train)
    assert second.details["data"]["sources"]["pairs"]["path"] == spec.path


def test_a_branch_of_the_hub_may_change_so_only_the_same_stage_uses_it_again(tmp_path, monkeypatch, encoded):
    rows = [{"prompt": f"the lamp {n}", "chosen": "is red", "rejected": "nine"} for n in range(20)]
    monkeypatch.setattr("prefopt.data.hub.rows", lambda spec: iter(rows))
    for revision, times in ((None, 2), ("main", 2), ("0" * 40, 1)):
        of = recipe(tmp_path)
        spec = of.data["pairs"].model_copy(update={"path": "owner/name", "revision": revision})
        of = of.model_copy(update={"data": {"pairs": spec}})
        encoded.clear()
        for key in ("1" * 64, "2" * 64, "1" * 64):
            prepared(tmp_path, of, key=key)
        assert len(encoded) == times


def test_too_many_dropped_rows_are_refused_also_from_the_cache(tmp_path, encoded):
    strict = recipe(tmp_path, {"max_length": 13}, overlong="drop", max_dropped=0.1)
    for _ in range(2):
        with pytest.raises(DataError, match=r"of 50 rows .* cannot be used: \d+ longer than max_length 13"):
            prepared(tmp_path, strict)
    kept = prepared(tmp_path, recipe(tmp_path, {"max_length": 13}, overlong="drop", max_dropped=1))
    assert kept.details["encoding"]["dropped_too_long"] > 4 and encoded == [50]


@pytest.mark.parametrize("name", ["tokens.i32", "bounds.i64", "account.json", "train.set.i64", "layout.json"])
def test_a_damaged_entry_is_prepared_again(tmp_path, encoded, name):
    first = prepared(tmp_path, recipe(tmp_path))
    rows, details = list(first.train), first.details
    (folder,) = (tmp_path / "cache" / "rows").glob("[0-9a-f]*")
    for damage in ("truncate", "flip"):
        path = folder / name
        content = bytearray(path.read_bytes())
        if damage == "truncate":
            os.truncate(path, len(content) - 1)
        else:
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        lines: list[str] = []
        again = prepared(tmp_path, recipe(tmp_path), log=lines.append)
        assert any("is damaged and made again" in line for line in lines)
        assert list(again.train) == rows and again.details == details
    assert encoded == [50] * 3


def test_a_row_that_is_wrong_is_an_error_each_time_and_leaves_no_entry(tmp_path):
    of = recipe(tmp_path)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "x", "chosen": null, "rejected": "y"}\n')
    for _ in range(2):
        with pytest.raises(DataError, match=r"pairs.jsonl, line 51: column 'chosen': expected a value, found null"):
            prepared(tmp_path, of)
    assert list((tmp_path / "cache" / "rows").glob("[0-9a-f]*")) == []
