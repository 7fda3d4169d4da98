"""Generated rows and files: every row is read, counted, or an error that names it; in bounded time and memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from prefopt.data import conversations, formats
from prefopt.data.load import load_demonstrations, load_pairs, load_prompts, load_texts, load_unpaired
from prefopt.errors import DataError
from prefopt.recipe.schema import DataSpec
from tests.faults.conftest import Count
from tests.faults.fuzzing import ALL, FEW, SECONDS_OF_A_CASE, fuzz, require_one_line

LOADERS = (load_pairs, load_demonstrations, load_prompts, load_texts, load_unpaired)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.gz", ".csv.gz")
TEXTS = st.sampled_from(
    ["", " ", "Hi", "\n\nHuman: Hi\n\nAssistant: Ho", "\n\nHuman:", "\x00", "\ud800", "\u202eabc", "e\u0301", "\ufeff",
     "</s>", "<|assistant|>", "x" * 300]
) | st.text(st.characters(exclude_categories=[]), max_size=12)  # fmt: skip
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "", None, 3])


def cells() -> SearchStrategy[Any]:
    message = st.fixed_dictionaries({}, optional={"role": ROLES, "content": TEXTS | st.none() | st.integers()})
    plain = st.one_of(TEXTS, st.none(), st.booleans(), st.integers(-3, 10**20), st.floats())
    return st.one_of(plain, st.lists(message | plain, max_size=4), st.dictionaries(st.text(max_size=5), plain))


def rows() -> SearchStrategy[list[dict[str, Any]]]:
    """Rows that would be read but for their texts, some of them with a few cells of any kind."""
    said = st.tuples(TEXTS, TEXTS).map(
        lambda two: [{"role": "user", "content": two[0]}, {"role": "assistant", "content": two[1]}]
    )
    good = st.one_of(
        st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}),
        st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS, "label": st.booleans()}),
        st.fixed_dictionaries({"messages": said}),
        st.fixed_dictionaries({"text": TEXTS}),
    )
    wrong = st.dictionaries(st.sampled_from(sorted(formats.COLUMNS)), cells(), max_size=5)
    row = good | st.tuples(good | st.just({}), wrong).map(lambda both: {**both[0], **both[1]})
    return st.lists(row, max_size=4)


def judge(folder: Path) -> Callable[[tuple[int, str, bytes]], str]:
    def outcome(case: tuple[int, str, bytes]) -> str:
        loader, suffix, content = case
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        try:
            loaded = LOADERS[loader](("d",), {"d": DataSpec(path=str(path))}, 0)
        except DataError as error:
            require_one_line(str(error), "'d'")
            return "refused"
        (report,) = loaded.report.sources
        assert report.rows_read == report.kept_train + report.kept_eval + sum(report.dropped.values())
        return "read"

    return outcome


def as_lines(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


def cases() -> dict[str, SearchStrategy[tuple[int, str, bytes]]]:
    loader = st.integers(0, len(LOADERS) - 1)
    content = st.binary(max_size=300)
    torn = st.tuples(rows().map(as_lines), st.integers(0, 200)).map(lambda both: both[0][: len(both[0]) - both[1]])
    return {
        "rows": st.tuples(loader, st.just(".jsonl"), rows().map(as_lines)),
        "bytes": st.tuples(loader, st.sampled_from(SUFFIXES), content),
        "torn rows": st.tuples(loader, st.sampled_from((".jsonl", ".json", ".csv")), torn),
    }


def run_all(folder: Path, count: int) -> int:
    tried = 0
    for name, strategy in cases().items():
        ended = fuzz(strategy, judge(folder), count // 3)
        assert not ended.error and not ended.killed, f"{name}: {ended.error}"
        assert ended.value["slowest"] < SECONDS_OF_A_CASE and "refused" in ended.value["outcomes"], (name, ended.value)
        tried += ended.value["cases"]
    return tried


def test_t26_generated_rows_are_read_counted_or_refused_in_words(tmp_path: Path) -> None:
    assert run_all(tmp_path, FEW) >= 0.5 * FEW


@pytest.mark.sweep
def test_t26_ten_thousand_generated_rows_and_files(tmp_path: Path, count: Count) -> None:
    tried = run_all(tmp_path, ALL)
    assert tried >= 0.5 * ALL
    count("T26", "generated rows and files of data", tried)


def test_t26_a_planted_fault_of_a_format_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = conversations.Cells.text

    def faulty(self: Any, column: str) -> str:
        return text(self, column).encode("ascii").decode()

    monkeypatch.setattr(conversations.Cells, "text", faulty)
    ended = fuzz(cases()["rows"], judge(tmp_path), 5 * FEW)
    assert "UnicodeEncodeError" in ended.error or "AttributeError" in ended.error, ended
