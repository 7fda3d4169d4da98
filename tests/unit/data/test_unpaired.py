"""Completions marked as good or bad: recognised, read from pairs as well, split by prompt, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.data.load import load_demonstrations, load_pairs, load_prompts, load_texts, load_unpaired
from prefopt.data.splits import prompt_key
from prefopt.errors import DataError
from prefopt.recipe.schema import DataSpec
from prefopt.records import Message, Unpaired, unpaired


def mark(number: int, label: object, completion: str = "yes", **more: object) -> dict[str, object]:
    return {"prompt": f"Question {number}?", "completion": completion, "label": label, **more}


def spec(folder: Path, *rows: object, suffix: str = ".jsonl", **more: object) -> dict[str, DataSpec]:
    path = folder / f"rows{suffix}"
    if suffix == ".csv":
        path.write_text("prompt,completion,label\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"a": DataSpec(path=str(path), **{"eval_fraction": 0, **more})}


@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), (1.0, 0.0), ("true", "False")])
def test_what_says_true_or_false_is_a_label(tmp_path, good, bad):
    loaded = load_unpaired(("a",), spec(tmp_path, mark(1, good), mark(2, bad, "no", source="web", id="x")), 17)
    first, second = loaded.train
    assert (first.label, first.completion, first.source, first.id) == (True, "yes", "a", "a/1")
    assert (second.label, second.completion, second.source, second.id) == (False, "no", "web", "x")
    assert loaded.report.to_json()["sources"]["a"]["format"] == "unpaired"


def test_a_table_and_a_column_of_another_name(tmp_path):
    rows = load_unpaired(("a",), spec(tmp_path, ("Hi?", "Hello.", "true"), ("Hi?", "What?", "0"), suffix=".csv"), 17)
    assert [row.label for row in rows.train] == [True, False]
    tagged = [{"prompt": "Hi?", "completion": "Hello.", "kto_tag": True}]
    (row,) = load_unpaired(("a",), spec(tmp_path, *tagged, columns={"label": "kto_tag"}), 17).train
    assert row.label and "kto_tag" not in row.extra


def test_messages_are_conversations(tmp_path):
    turns = [{"role": "user", "content": "Hi?"}]
    row = {"prompt": turns, "completion": [{"role": "assistant", "content": "Hello."}], "label": False, "more": 3}
    (found,) = load_unpaired(("a",), spec(tmp_path, row), 17).train
    assert found == Unpaired((Message("user", "Hi?"),), "Hello.", False, source="a", id="a/1", extra={"more": 3})


def test_a_pair_gives_a_good_and_a_bad_row_and_a_tie_none(tmp_path):
    pairs = [{"prompt": f"Question {n}?", "chosen": "yes", "rejected": "no", "probability": p}
             for n, p in enumerate((1.0, 0.3, 0.5))]  # fmt: skip
    loaded = load_unpaired(("a",), spec(tmp_path, *pairs), 17)
    assert [(row.completion, row.label) for row in loaded.train] == [
        ("yes", True), ("no", False), ("yes", False), ("no", True),
    ]  # fmt: skip
    assert loaded.report.to_json()["dropped"] == {"tie": 1}
    with pytest.raises(DataError, match="0 usable rows"):
        load_unpaired(("a",), spec(tmp_path, pairs[2]), 17)


def test_duplicates_go_and_contradictions_stay(tmp_path):
    rows = [mark(1, True), mark(1, True, " YES "), mark(1, False), mark(2, True, "")]
    loaded = load_unpaired(("a",), spec(tmp_path, *rows), 17)
    assert [row.label for row in loaded.train] == [True, False]
    assert loaded.report.to_json()["dropped"] == {"exact_duplicate": 1, "empty_completion": 1}


def test_the_split_is_that_of_every_other_stage(tmp_path):
    data = spec(tmp_path, *(mark(n % 20, n % 3 == 0, f"yes {n}") for n in range(60)), eval_fraction=0.3)
    loaded = load_unpaired(("a",), data, 17)
    held = {prompt_key(row.prompt) for row in loaded.eval}
    assert held and not held & {prompt_key(row.prompt) for row in loaded.train}
    assert held == {prompt_key(prompt) for prompt in load_prompts(("a",), data, 17).eval}
    assert held == {prompt_key(row.prompt) for row in load_demonstrations(("a",), data, 17).eval}


def test_the_good_ones_are_demonstrations_and_the_bad_ones_are_counted(tmp_path):
    rows = [mark(1, True, weight=2.0, id="x", more=3), mark(2, False, "no"), mark(3, "0")]
    loaded = load_demonstrations(("a",), spec(tmp_path, *rows), 17)
    (good,) = loaded.train
    assert (good.completion, good.weight, good.source, good.id, good.extra) == ("yes", 2.0, "a", "x", {"more": 3})
    assert loaded.report.to_json()["dropped"] == {"marked_bad": 2}
    texts = load_texts(("a",), spec(tmp_path, *rows), 17)
    assert texts.train == [(Message("user", "Question 1?"), Message("assistant", "yes"))]
    assert texts.report.to_json()["dropped"] == {"marked_bad": 2}
    # Who means all of them says so: then `label` is a column like any other.
    every = load_demonstrations(("a",), spec(tmp_path, *rows, format="prompt_completion"), 17).train
    assert [row.extra["label"] for row in every] == [True, False, "0"]
    with pytest.raises(DataError, match=r"0 usable rows.*marked_bad"):
        load_demonstrations(("a",), spec(tmp_path, rows[1]), 17)


def test_what_has_no_label_is_refused(tmp_path):
    unmarked = [{"prompt": "Hi?", "completion": "Hello."}]
    with pytest.raises(DataError, match=r"fits none of the formats .*unpaired"):
        load_unpaired(("a",), spec(tmp_path, *unmarked), 17)
    with pytest.raises(DataError, match=r"column 'label'.*true or false"):
        load_unpaired(("a",), spec(tmp_path, mark(1, True), mark(2, "good")), 17)
    with pytest.raises(DataError, match="'unpaired' cannot be used"):
        load_pairs(("a",), spec(tmp_path, mark(1, True), format="unpaired"), 17)


def test_the_toy_world_gives_its_pairs():
    loaded = load_unpaired(("toy",), {"toy": DataSpec(path="toy", max_samples=20)}, 17)
    labels = [row.label for row in loaded.train]
    assert labels.count(True) == labels.count(False) > 5
    assert all(unpaired(row) == [row] for row in loaded.train)


@pytest.mark.parametrize(("given", "word"), [({"completion": " "}, "completion is empty"), ({"weight": -1.0}, "weight"),
                                             ({"prompt": ()}, "prompt is empty")])  # fmt: skip
def test_a_record_cannot_be_wrong(given, word):
    with pytest.raises(ValueError, match=word):
        Unpaired(**{"prompt": (Message("user", "Hi?"),), "completion": "Hello.", "label": True, **given})
