"""What experiments keep of their runs, and the processes that they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learning.results import Rows, python


def test_rows_are_there_for_whoever_reads_the_file_next(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "new" / "rows.jsonl")
    assert rows.by_key == {}
    rows.add("a/1", seconds=2.0, measured={"reward": 1.5})
    rows.add("a/2", measured=[])
    again = Rows(tmp_path / "new" / "rows.jsonl")
    assert again.by_key == rows.by_key and list(again.by_key) == ["a/1", "a/2"]
    assert again.by_key["a/1"]["measured"] == {"reward": 1.5} and again.by_key["a/1"]["commit"]


def test_a_process_without_network_says_what_it_found_or_why_it_failed() -> None:
    words = ["-c", "import os; print(os.environ['HF_HUB_OFFLINE'], os.environ['MORE'])"]
    assert python(words, {"MORE": "x"}) == "1 x\n"
    with pytest.raises(RuntimeError, match=r"ended with 3.*\n.*\nwhy"):
        python(["-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])
