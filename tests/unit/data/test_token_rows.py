from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.pieces import id_bytes
from prefopt.data.token_rows import Columns, RowWriter, TokenRows, WithColumns, lengths_of
from prefopt.errors import EnvironmentFault, IntegrityError

COLUMNS = Columns(("prompt_ids", "chosen_ids"), ("weight", "margin"), ("source",), ("axes",))
ROWS: list[dict[str, Any]] = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [2**31 - 1], "weight": 0.1, "margin": None, "source": "é", "axes": {}},
    {"prompt_ids": [], "chosen_ids": [7, 8], "weight": 1.0, "margin": -2.5, "source": "", "axes": {"safe": 0.3}},
    {"prompt_ids": [5], "chosen_ids": [], "weight": 1 / 3, "margin": 0.0, "source": "a b", "axes": {}},
]


def written(folder: Path, rows: list[dict[str, Any]], columns: Columns = COLUMNS) -> Path:
    import json

    folder.mkdir(parents=True, exist_ok=True)
    writer = RowWriter(folder, columns)
    for row in rows:
        texts = [row[name] for name in columns.texts] + [json.dumps(row[name]) for name in columns.documents]
        writer.add([id_bytes(row[name]) for name in columns.ids], [row[name] for name in columns.numbers], texts)
    writer.add_set("odd", [np.arange(1, len(rows), 2)])
    writer.close()
    return folder


def test_rows_are_what_was_written(tmp_path):
    rows = TokenRows(written(tmp_path, ROWS))
    assert list(rows) == ROWS and len(rows) == 3
    assert [rows[index] for index in (0, 1, 2, -1)] == [*ROWS, ROWS[2]]
    assert rows[:2] == ROWS[:2] and rows[::-1] == ROWS[::-1] and rows[1:1] == []
    assert all(type(token) is int for token in rows[0]["prompt_ids"])
    with pytest.raises(IndexError):
        rows[3]


def test_lengths_and_numbers_come_without_rows(tmp_path):
    rows = TokenRows(written(tmp_path, ROWS))
    assert rows.lengths("prompt_ids").tolist() == [3, 0, 1] and rows.lengths("chosen_ids").tolist() == [1, 2, 0]
    assert rows.numbers("weight").tolist() == [0.1, 1.0, 1 / 3] and np.isnan(rows.numbers("margin")[0])
    assert lengths_of(rows, "chosen_ids") == lengths_of(ROWS, "chosen_ids") == [1, 2, 0]


def test_sets_and_orders(tmp_path):
    folder = written(tmp_path, ROWS)
    odd = TokenRows.of_set(folder, "odd")
    assert list(odd) == [ROWS[1]] and odd.lengths("chosen_ids").tolist() == [2]
    assert list(TokenRows(folder).select(np.array([2, 0])).select(np.array([1]))) == [ROWS[0]]


def test_workers_get_the_folder_and_not_the_content(tmp_path):
    rows = TokenRows(written(tmp_path, ROWS * 1000)).select(np.array([2, 0]))
    packed = pickle.dumps(rows)
    assert len(packed) < 1000 and list(pickle.loads(packed)) == [ROWS[2], ROWS[0]]


def test_more_rows_than_a_block_and_none(tmp_path):
    many = [{"prompt_ids": [number], "chosen_ids": list(range(number % 5))} for number in range(10_000)]
    columns = Columns(("prompt_ids", "chosen_ids"))
    assert list(TokenRows(written(tmp_path / "many", many, columns))) == many
    for none in (columns, COLUMNS):
        assert list(TokenRows(written(tmp_path / f"none{len(none.texts)}", [], none))) == []


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "prompt_ids": st.lists(st.integers(0, 2**31 - 1), max_size=5),
                "chosen_ids": st.lists(st.integers(0, 2**31 - 1), max_size=5),
                "weight": st.floats(allow_nan=False),
                "margin": st.none() | st.floats(allow_nan=False),
                "source": st.text(st.characters(exclude_categories=("Cs",))),
                "axes": st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.floats(0, 1)),
            }
        )
    )
)
def test_any_rows_come_back(tmp_path_factory, rows):
    assert list(TokenRows(written(tmp_path_factory.mktemp("rows"), rows))) == rows


@pytest.mark.parametrize("name", ["tokens.i32", "bounds.i64", "weight.f64", "source.utf8", "axes.i64", "layout.json"])
@pytest.mark.parametrize("size", [0, 8])
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, name, size):
    os.truncate(written(tmp_path, ROWS) / name, size)
    with pytest.raises(IntegrityError, match=r"tokenised rows"):
        TokenRows(tmp_path)


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(IntegrityError, match="the set 'train' cannot be read"):
        TokenRows.of_set(written(tmp_path, ROWS), "train")


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(EnvironmentFault, match="cannot write"):
        RowWriter(tmp_path / "missing", COLUMNS)


def test_columns_are_put_into_rows_and_hide_others(tmp_path):
    for rows in (ROWS, TokenRows(written(tmp_path, ROWS))):
        more = WithColumns(rows, {"weight": [3.0, 4.0, 5.0], "rank": [0, 1, 2]})
        assert [row["weight"] for row in more] == [3.0, 4.0, 5.0]
        assert more[1] == {**ROWS[1], "weight": 4.0, "rank": 1} and more[-2:] == [more[1], more[2]]
        assert lengths_of(more, "prompt_ids") == [3, 0, 1] and len(more) == 3 and rows[0]["weight"] == 0.1
