"""The real test split of harmless-base, whose README says what a reader must cope with."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from prefopt.data.load import Loaded, load_pairs, load_prompts
from prefopt.recipe.schema import DataSpec
from prefopt.records import PreferencePair

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def path(shared_data: Path) -> Path:
    return shared_data / "hh-rlhf-harmless"


@pytest.fixture(scope="module")
def loaded(path: Path) -> Loaded[PreferencePair]:
    return load_pairs(("hh",), {"hh": DataSpec(path=str(path), split="test")}, 17)


def test_every_row_is_accounted_for(loaded):
    assert loaded.report.rows_read == 2312
    assert loaded.report.dropped == {"turns_differ_before_the_last": 5, "empty_completion": 4}
    assert len(loaded.train) + len(loaded.eval) == 2303
    assert loaded.report.contradictions == ()
    assert 200 < len(loaded.eval) < 260


def test_2307_pairs_share_the_prompt(path):
    spec = DataSpec(path=str(path / "test.jsonl.gz"), eval_fraction=0)
    report = load_prompts(("hh",), {"hh": spec}, 17).report.to_json()
    assert report["rows_read"] - report["dropped"]["turns_differ_before_the_last"] == 2307


def test_the_transcripts_can_be_written_again(path, loaded):
    """Roles, order and text survive: only white space around turns is lost."""
    lines = gzip.open(path / "test.jsonl.gz", "rt", encoding="utf-8").read().split("\n")
    for pair in [*loaded.train, *loaded.eval]:
        row = json.loads(lines[int(pair.id.removeprefix("hh/")) - 1])
        prompt = "".join(f" {'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in pair.prompt)
        assert f"{prompt} Assistant: {pair.chosen}".split() == row["chosen"].split()
        assert f"{prompt} Assistant: {pair.rejected}".split() == row["rejected"].split()


def test_conversations_and_answers_that_quote_markers(loaded):
    pairs = [*loaded.train, *loaded.eval]
    assert sum(len(pair.prompt) == 1 for pair in pairs) >= 655
    assert max(sum(message.role == "user" for message in pair.prompt) for pair in pairs) >= 15
    quoting = sum("Human:" in f"{pair.chosen}{pair.rejected}" for pair in pairs)
    assert quoting >= 10
    assert all(pair.source == "hh" for pair in pairs)
