"""Weights of rare groups, by a column or by a cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefopt.errors import DataError
from prefopt.pipeline.adapters import demonstration_rows
from prefopt.pipeline.base_model import open_base
from prefopt.pipeline.group_weights import columns_for, grouped, weighed
from prefopt.pipeline.pair_rows import PAIR_COLUMNS, REWARD_COLUMNS, pair_rows
from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.options.sft import SFTLossOptions
from tests.unit.pipeline.test_pair_rows import context, recipe

BANNED = [{"cost": "banned", "words": ["gruesome"]}]


def lines() -> list[dict[str, Any]]:
    """Nine pairs of one category and three of another, of which two prefer a gruesome answer."""
    return [
        {
            "prompt": f"{n}",
            "chosen": f"{'gruesome' if n < 2 else 'red'} lamp {n}",
            "rejected": "a",
            "harm": "rare" if n % 4 == 3 else "common",
            "weight": 2.0 if n == 0 else 1.0,
        }
        for n in range(12)
    ]


def opened(folder: Path, stage: dict[str, Any], columns=PAIR_COLUMNS):
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    of = recipe(folder, stage, eval_fraction=0.0)
    spec, there = of.stages["dpo"], context(folder, of)
    base = open_base({}, there)
    if spec.kind == "sft":
        rows = demonstration_rows(spec.data, spec.max_length, {}, there, base, weighted=True, column="harm")
    else:
        rows = pair_rows(spec, {}, there, base, columns_for(spec, columns))
    return spec, rows, grouped(rows, spec, {}, there, base)


def test_without_weights_rows_and_columns_stay(tmp_path: Path) -> None:
    spec, rows, found = opened(tmp_path, {})
    assert found is rows and weighed(found, spec) is rows and columns_for(spec, PAIR_COLUMNS) is PAIR_COLUMNS
    assert not {"group_weights", "group_by", "group_costs", "effective_number_beta"} & spec_for_key(spec).keys()


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_a_column_of_the_data_makes_groups(tmp_path: Path, kind: str) -> None:
    spec, rows, found = opened(tmp_path, {"kind": kind, "group_weights": "inverse", "group_by": "harm"})
    weights = {row["harm"]: row["weight"] / (rows.train[n].get("weight") or 1) for n, row in
               enumerate(weighed(found, spec).train)}  # fmt: skip
    assert weights == pytest.approx({"rare": 2.0, "common": 2 / 3})
    assert found.details["groups"] == {
        "common": {"rows": 9, "weight": pytest.approx(2 / 3)},
        "rare": {"rows": 3, "weight": pytest.approx(2.0)},
    }
    assert max(row["weight"] for row in weighed(found, spec).train) == pytest.approx(2.0)
    assert weighed(found, spec).train[0]["weight"] == pytest.approx(2 * 2 / 3)  # its own weight is 2


def test_a_cost_makes_groups(tmp_path: Path) -> None:
    stage = {"group_weights": "effective_number", "group_by": "violates", "group_costs": BANNED}
    spec, _, found = opened(tmp_path, stage)
    assert [row["violates"] for row in found.train] == ["yes"] * 2 + ["no"] * 10
    sizes = {group: said["rows"] for group, said in found.details["groups"].items()}
    assert sizes == {"no": 10, "yes": 2}
    ratio = (1 - 0.999**10) / (1 - 0.999**2)
    rows = weighed(found, spec).train
    assert rows[1]["weight"] / rows[5]["weight"] == pytest.approx(ratio)


def test_a_reward_model_gets_the_column(tmp_path: Path) -> None:
    stage = {"kind": "reward", "group_weights": "inverse", "group_by": "harm"}
    _, _, found = opened(tmp_path, stage, REWARD_COLUMNS)
    assert [row["harm"] for row in found.train].count("rare") == 3


def test_a_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row says anything in the column 'topic'"):
        opened(tmp_path, {"group_weights": "inverse", "group_by": "topic"})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"group_by": "violates"}, "belongs to `group_by: violates`, which needs it"),
        ({"group_costs": BANNED}, "belongs to `group_by: violates`"),
        ({"group_by": "weight"}, "is a part of every row"),
        ({"group_by": "longer"}, "is for pairs"),
        ({"group_costs": [{"cost": "missing_eos"}], "group_by": "violates"}, "where a policy samples"),
    ],
)
def test_what_makes_no_groups_is_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SFTLossOptions.model_validate(stage)
