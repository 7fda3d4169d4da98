from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import fill_docs

PAGE = """<!-- measured: another command -->
| `train/loss` | of another table | 1 |
<!-- /measured -->
<!-- measured: metrics.jsonl of the stage dpo -->
| metric | meaning | in the quickstart |
|---|---|---|
| `train/loss` | the loss | 2 |
<!-- /measured -->
"""


def test_a_stages_metrics_are_written_into_its_own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill_docs, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    fill_docs.fill_metrics("page.md", "dpo", lambda name: f"new {name}")
    expected = PAGE.replace("| the loss | 2 |", "| the loss | new train/loss |")
    assert (tmp_path / "page.md").read_text() == expected
    with pytest.raises(ValueError, match=r"page\.md has no measured table of the stage ppo"):
        fill_docs.fill_metrics("page.md", "ppo", lambda name: name)
