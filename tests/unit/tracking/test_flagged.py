"""What costs, in the words that cost it: one line, whatever the text, and never longer than a person reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefopt.tracking.flagged import LONGEST_TEXT, MOST_TEXTS, flagged, readable

TEXTS = st.text(alphabet=st.sampled_from('ab "\\\n\r\t\u2028\u202e\u200b\x00漢\ud800'), max_size=200)
SPANS = st.lists(st.tuples(st.integers(-3, 220), st.integers(-3, 220)).map(list), max_size=64)


def test_a_cell_has_the_words_how_often_and_the_amount() -> None:
    said = "a red lamp, a red lamp, we guarantee"
    spans = {"banned": [[2, 10], [14, 22], [27, 36]], "length": [[24, 36]]}
    costs = {"banned": 1.0, "length": 1 / 3, "late": 2.0, "script": 0.0}
    assert flagged(said, costs, spans) == (
        'banned: "red lamp" ×2, "guarantee" (1.0); length: "we guarantee" (0.333); late (2.0)'
    )


def test_spans_at_the_ends_and_beyond() -> None:
    assert flagged("bad", {"x": 1.0}, {"x": [[0, 3]]}) == 'x: "bad" (1.0)'
    assert flagged("a bad", {"x": 1.0}, {"x": [[-2, 1], [4, 99], [5, 5], [9, 7]]}) == 'x: "a", "d" (1.0)'
    assert flagged("", {"x": 1e-5}, {"x": [[0, 1]]}) == "x (1e-05)"


def test_what_would_break_a_line_or_turn_it_around_is_written_out() -> None:
    assert flagged('a\n"b"\\\u202e', {"x": 1.0}, {"x": [[0, 7]]}) == 'x: "a\\n\\"b\\"\\\\\\u202e" (1.0)'


@given(TEXTS, SPANS)
def test_a_cell_is_one_readable_line_of_a_bounded_length(said: str, spans: list[list[int]]) -> None:
    cell = flagged(said, {"x": 1.0}, {"x": spans})
    assert cell.startswith("x") and cell.endswith(" (1.0)") and cell.isprintable()
    # At most six characters are written for one of the text.
    assert len(cell) <= MOST_TEXTS * (6 * (LONGEST_TEXT + 1) + 10) + 30
    cell.encode("utf-8")


def test_many_texts_are_counted() -> None:
    cell = flagged("abcdefghijkl", {"x": 12.0}, {"x": [[place, place + 1] for place in range(12)]})
    assert cell == 'x: "a", "b", "c", "d", "e", "f", "g", "h" and 4 more (12.0)'
    assert flagged("z" * 300, {"x": 1.0}, {"x": [[0, 300]]}) == f'x: "{"z" * 30}…{"z" * 30}" (1.0)'


def test_rows_without_costs_stay_as_they_are() -> None:
    rows = [{"completion": "bad", "violations": ["bad"]}, {"spans": 3, "costs": {}}]
    assert readable(rows) == rows
    assert readable([{"completion": "bad", "costs": {"x": 0.0}, "spans": {}}]) == [
        {"completion": "bad", "costs": {"x": 0.0}, "flagged": ""}
    ]
