"""What becomes of pairs whose answers cost something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import DataError
from prefopt.models.batches import FLAGS
from prefopt.pipeline.base_model import open_base
from prefopt.pipeline.pair_costs import priced_pairs
from prefopt.pipeline.pair_rows import PAIR_COLUMNS, pair_rows
from tests.unit.pipeline.test_pair_rows import context, recipe

BANNED = [{"cost": "banned", "words": ["gruesome"]}]
LINES = [
    {"prompt": "a", "chosen": "a red lamp", "rejected": "gruesome", "weight": 2.0},
    {"prompt": "b", "chosen": "a gruesome lamp", "rejected": "a red lamp", "weight": 2.0},
    {"prompt": "c", "chosen": "a gruesome chair", "rejected": "gruesome"},
    {"prompt": "d", "chosen": "a green lamp", "rejected": "gruesome chair", "probability": 0.1},
    {"prompt": "e", "chosen": "gruesome house", "rejected": "a house", "probability": 0.5},
    {"prompt": "f", "chosen": "a lamp", "rejected": "a chair"},
]


def opened(folder: Path, lines: list = LINES, **stage: Any):
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    of = recipe(folder, stage, eval_fraction=0.0)
    spec, there = of.stages["dpo"], context(folder, of)
    base = open_base({}, there)
    rows = pair_rows(spec, {}, there, base, PAIR_COLUMNS)
    return rows, priced_pairs(rows, spec, {}, there, base), base.tokenizer


def labels(rows) -> list[tuple[float, float]]:
    return [(row["weight"], row["probability"]) for row in rows.train]


def test_without_costs_rows_are_the_same_object(tmp_path: Path) -> None:
    plain, found, _ = opened(tmp_path)
    assert found is plain


@pytest.mark.parametrize(
    ("action", "counts", "expected"),
    [
        (
            {},
            {"clean": 2, "downweighted": 3, "ties": 1},
            [(2.0, 1.0), (1.0, 1.0), (0.5, 1.0), (0.5, 0.1), (1.0, 0.5), (1.0, 1.0)],
        ),
        (
            {"violation_weight": 0.0},
            {"clean": 2, "downweighted": 3, "ties": 1},
            [(2.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 0.1), (1.0, 0.5), (1.0, 1.0)],
        ),
        (
            {"on_violation": "relabel"},
            {"clean": 2, "relabelled": 2, "dropped": 1, "ties": 1},
            [(2.0, 1.0), (2.0, 0.0), (1.0, 0.9), (1.0, 0.5), (1.0, 1.0)],
        ),
        (
            {"on_violation": "drop"},
            {"clean": 2, "dropped": 3, "ties": 1},
            [(2.0, 1.0), (1.0, 0.5), (1.0, 1.0)],
        ),
    ],
)
def test_every_pair_is_counted_once(tmp_path: Path, action: dict, counts: dict, expected: list) -> None:
    plain, found, tokenizer = opened(tmp_path, violations=BANNED, **action)
    assert found.details["costs"]["violations"] == {"pairs": 6, **counts}
    assert labels(found) == [pytest.approx(each) for each in expected]
    assert labels(plain)[1] == (2.0, 1.0)
    words = [tokenizer.decode(row["chosen_ids"], skip_special_tokens=True).strip() for row in found.train]
    if action.get("on_violation") == "drop":
        assert words == ["a red lamp", "gruesome house", "a lamp"]


def test_where_all_violate_nothing_is_left_and_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every pair prefers an answer that violates"):
        opened(tmp_path, LINES[1:3], violations=BANNED, on_violation="drop")


def test_margins_and_flags_are_columns_of_the_rows(tmp_path: Path) -> None:
    costs = [{**BANNED[0], "weight": 0.5}]
    _, found, tokenizer = opened(tmp_path, cost_margin=costs, unlikelihood=costs)
    rows = list(found.train[:])
    assert [row["chosen_cost"] for row in rows] == [0.0, 0.5, 0.5, 0.0, 0.5, 0.0]
    assert [row["rejected_cost"] for row in rows] == [0.5, 0.0, 0.5, 0.5, 0.0, 0.0]
    for row in rows:
        flags = row[FLAGS]
        assert (flags is None) == (row["chosen_cost"] == 0)
        if flags is not None:
            said = tokenizer.decode([t for t, f in zip(row["chosen_ids"], flags, strict=True) if f == 0.5])
            assert said.strip() == "gruesome"
    assert found.details["costs"]["flagged_train"]["violating"] == {"banned": 3}
    assert found.details["costs"]["chosen_cost_train"] == pytest.approx(1.5 / 6)
