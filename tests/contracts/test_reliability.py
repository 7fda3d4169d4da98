"""The page of reliability names tests for every row, tests of faults have their rows, and counts are the file's."""

from __future__ import annotations

import json
import re

from tests.end_to_end.small import ROOT
from tests.faults.fill_docs import END, NUMBERS, PAGE, START, table

ROW = re.compile(r"^\| (T\d+) \| (.*) \| (.*) \|$", re.MULTILINE)
ROWS = range(1, 48)


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def rows() -> dict[str, str]:
    """Row → the tests that it names."""
    _, _, section = page().partition("## Rows")
    return {name: tests for name, _, tests in ROW.findall(section.partition("\n## ")[0])}


def absent() -> set[str]:
    _, _, section = page().partition("## Not covered")
    return {f"T{int(found)}" for found in re.findall(r"\bT(\d+)\b", section)}


def test_every_row_is_tested_or_said_to_be_left_out() -> None:
    known = {f"T{number}" for number in ROWS}
    assert set(rows()) | absent() == known
    assert set(rows()) & absent() == set()


def test_every_row_names_tests_that_exist() -> None:
    for name, tests in rows().items():
        links = re.findall(r"\]\(\.\./(tests/[\w/]+\.py)\)", tests)
        assert links, f"{name} names no test"
        assert [link for link in links if not (ROOT / link).is_file()] == [], name


def test_every_test_of_a_fault_is_in_its_row() -> None:
    found = rows()
    for path in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        numbers = {f"T{int(each)}" for each in re.findall(r"def test_(?:t\d+_)*?t(\d+)_", path.read_text("utf-8"))}
        assert numbers, f"{path.name} names no row"
        for name in numbers:
            assert f"tests/faults/{path.name}" in found[name], f"{name} does not name {path.name}"


def test_the_counts_on_the_page_are_those_of_the_file() -> None:
    _, _, rest = page().partition(START)
    assert rest.partition(END)[0].strip() == table(json.loads(NUMBERS.read_text(encoding="utf-8")))
