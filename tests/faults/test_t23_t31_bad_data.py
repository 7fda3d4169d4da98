"""What people's files hold: none of it is trained on silently; each is counted, or an error that names the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.load import load_demonstrations, load_pairs
from prefopt.errors import DataError
from prefopt.recipe.schema import DataSpec

GOOD = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
TURNS = [{"role": "user", "content": "Hi"}]


def pairs(tmp_path: Path, *rows: Any, text: str = "", **options: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text(text or "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_pairs(("mine",), {"mine": DataSpec(path=str(path), **options)}, 0)


# Row: what is in the file, what the error says. The second row is the wrong one where there are two.
WRONG: dict[str, tuple[str, list[Any], tuple[str, ...]]] = {
    "empty": ("T23", [], ("0 usable rows", "rows.jsonl")),
    "nothing left": ("T23", [{**GOOD, "rejected": "Hello."}], ("0 usable rows", "chosen_equals_rejected 1")),
    "missing column": ("T26", [GOOD, {"prompt": "Hi", "chosen": "a"}], ("line 2", "rejected")),
    "null": ("T26", [GOOD, {**GOOD, "chosen": None}], ("line 2", "chosen")),
    "wrong type": ("T26", [GOOD, {**GOOD, "rejected": 3}], ("line 2", "rejected")),
    "text, then messages": ("T26", [GOOD, {**GOOD, "chosen": TURNS, "rejected": TURNS}], ("line 2", "chosen")),
    "wrong role": ("T26", [{**GOOD, "prompt": [{"role": "robot", "content": "Hi"}]}], ("line 1", "prompt", "robot")),
    "no format": ("T26", [{"question": "Hi", "answer": "a"}], ("line 1", "question, answer")),
    "half a character": ("T31", [GOOD, {**GOOD, "chosen": "\ud800"}], ("line 2", "chosen")),
}


@pytest.mark.parametrize("name", WRONG)
def test_t23_t26_t31_a_wrong_row_is_named(tmp_path: Path, name: str) -> None:
    _, rows, words = WRONG[name]
    with pytest.raises(DataError) as error:
        pairs(tmp_path, *rows)
    said = str(error.value)
    assert error.value.exit_code == 2 and "\n" not in said and "'mine'" in said
    assert [word for word in words if word not in said] == [], said


def test_t11_a_torn_line_is_named(tmp_path: Path) -> None:
    line = json.dumps(GOOD) + "\n"
    for number, text in ((2, line + line[:20] + "\n" + line), (3, line + line + line[:20])):
        with pytest.raises(DataError, match=f"line {number}"):
            pairs(tmp_path, text=text)


def dropped(loaded: Any) -> dict[str, int]:
    (report,) = loaded.report.sources
    assert report.rows_read == report.kept_train + report.kept_eval + sum(report.dropped.values())
    return dict(report.dropped)


# Row: rows beside a good one, and what is counted.
COUNTED: dict[str, tuple[str, list[dict[str, Any]], dict[str, int]]] = {
    "duplicates": ("T24", [GOOD, GOOD, {**GOOD, "prompt": " hi "}], {"exact_duplicate": 3}),
    "equal answers": ("T25", [{**GOOD, "prompt": "A", "rejected": "Hello."}], {"chosen_equals_rejected": 1}),
    "empty prompt": ("T27", [{**GOOD, "prompt": ""}, {**GOOD, "prompt": " \n\t"}], {"empty_prompt": 2}),
    "empty answer": ("T27", [{**GOOD, "prompt": "A", "chosen": " "}], {"empty_completion": 1}),
    "control characters": ("T27", [{**GOOD, "prompt": "A", "rejected": "\x01\x02"}], {"empty_completion": 1}),
}


@pytest.mark.parametrize("name", COUNTED)
def test_t24_t25_t27_useless_rows_are_counted(tmp_path: Path, name: str) -> None:
    _, rows, counts = COUNTED[name]
    assert dropped(pairs(tmp_path, GOOD, {**GOOD, "prompt": "Another"}, *rows)) == counts


def test_t25_people_who_disagree_are_reported_with_ids(tmp_path: Path) -> None:
    turned = {"prompt": "Hi", "chosen": "What?", "rejected": "Hello."}
    loaded = pairs(tmp_path, {**GOOD, "id": "one"}, {**turned, "id": "two"})
    assert len(loaded.report.contradictions) == 1 and set(loaded.report.contradictions[0]) == {"one", "two"}


def test_t24_no_prompt_is_trained_on_and_held_out(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": f"Question {number % 20}", "chosen": f"Answer {number}"} for number in range(80)]
    loaded = pairs(tmp_path, *rows, eval_fraction=0.3)
    asked = [{pair.prompt for pair in side} for side in (loaded.train, loaded.eval)]
    assert asked[0] and asked[1] and not asked[0] & asked[1]


STRANGE = [
    "\u202ereversed",
    "👩\u200d👩\u200d👧",
    "e\u0301 é",
    "\u2028line",
    "tab\tend",
    "\ufeffmark",
    "\r\nline",
    "nul\x00byte",
]


@pytest.mark.parametrize("text", STRANGE)
def test_t31_strange_text_comes_back_as_it_was_or_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": text + "?", "completion": text + "!"}) + "\n")
    try:
        loaded = load_demonstrations(("mine",), {"mine": DataSpec(path=str(path))}, 0)
    except DataError as error:
        assert "line 1" in str(error) and text == "nul\x00byte"
    else:
        assert loaded.train[0].completion == text + "!" and loaded.train[0].prompt[0].content == text + "?"
