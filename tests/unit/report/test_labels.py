"""Names of marks cover neither each other nor the marks, as long as there is room."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.report.labels import LETTER, LINE, Box, dots, placed

BOUNDS = Box(40.0, 30.0, 380.0, 240.0)
MARKS = st.lists(st.tuples(st.floats(40, 380), st.floats(30, 240)), min_size=1, max_size=10)


@settings(max_examples=40, deadline=None)
@given(MARKS)
def test_names_stay_inside_and_apart_and_off_the_marks(marks: list[tuple[float, float]]) -> None:
    names = [f"policy-{number}" for number in range(len(marks))]
    found = placed(marks, names, BOUNDS)
    for number, box in enumerate(found):
        assert box.right - box.left == pytest.approx(LETTER * len(names[number]))
        assert box.high - box.low == pytest.approx(LINE)
        assert BOUNDS.left <= box.left and box.right <= BOUNDS.right + 1e-9
        assert BOUNDS.low <= box.low and box.high <= BOUNDS.high + 1e-9
        assert not any(box.overlaps(other) for other in found[:number])
        assert all(box.distance(mark) > 0 for mark in marks)


def test_twenty_names_at_one_place_are_all_read() -> None:
    for corner in ((40.0, 30.0), (380.0, 240.0), (200.0, 120.0)):
        found = placed([corner] * 20, ["some-policy-of-a-sweep"] * 20, BOUNDS)
        assert not any(a.overlaps(b) for number, a in enumerate(found) for b in found[:number])


def test_a_lone_name_is_at_its_mark_and_off_the_lines() -> None:
    mark = (200.0, 120.0)
    (free,) = placed([mark], ["dpo"], BOUNDS)
    assert free.is_near(mark)
    bars = [*dots((100.0, 120.0), (300.0, 120.0)), *dots((200.0, 60.0), (200.0, 180.0))]
    (box,) = placed([mark], ["dpo"], BOUNDS, bars)
    assert box.is_near(mark) and all(box.distance(dot) > 0 for dot in bars)


def test_a_name_that_is_too_long_for_the_plot_begins_inside() -> None:
    (box,) = placed([(200.0, 120.0)], ["x" * 100], BOUNDS)
    assert box.left == BOUNDS.left
