"""Where the names of marks are written, so that they cover neither each other nor the marks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Place = tuple[float, float]
"""Points from the left and from below."""

LETTER, LINE = 5.2, 11.0
"""Width of a letter and height of a line at a size of 8, with some air: the page's font is not known here."""
_MARK = 5.0
_GAP = 7.0
_NEAR = 12.0
_GRID = 16.0
# What is worse than what: a name over another cannot be read, one over a mark hides it, one over a line is less tidy.
_OVER_NAME, _OVER_MARK, _OVER_LINE = 10_000.0, 1_000.0, 8.0


class Box(NamedTuple):
    """A rectangle: its ends in points."""

    left: float
    low: float
    right: float
    high: float

    def nearest(self, place: Place) -> Place:
        """The point of the box that is nearest to a place."""
        return max(self.left, min(place[0], self.right)), max(self.low, min(place[1], self.high))

    def distance(self, place: Place) -> float:
        """From a place to the nearest point of the box; 0 within it."""
        return math.dist(place, self.nearest(place))

    def overlaps(self, other: Box) -> bool:
        """Whether the two have an area in common."""
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def is_near(self, place: Place) -> bool:
        """Whether it stands so close to a mark that no line needs to lead there."""
        return self.distance(place) < _NEAR


def placed(marks: Sequence[Place], names: Sequence[str], bounds: Box, lines: Sequence[Place] = ()) -> list[Box]:
    """A place for every name, one after the other: the nearest to its mark that covers little.

    Args:
        marks: Where N marks are.
        names: N names.
        bounds: What the places stay in, where a name fits.
        lines: Points that are better not covered.
    """
    taken: list[Box] = []
    avoided = list(lines)
    for mark, name in zip(marks, names, strict=True):
        box = _best(mark, _candidates(mark, LETTER * len(name), bounds), marks, taken, avoided)
        taken.append(box)
        avoided += _lead(mark, box)
    return taken


def dots(start: Place, end: Place, count: int = 24) -> Iterator[Place]:
    """Points of a line, as many for a short one as for a long one."""
    for step in range(count + 1):
        yield start[0] + (end[0] - start[0]) * step / count, start[1] + (end[1] - start[1]) * step / count


def _lead(mark: Place, box: Box) -> Iterator[Place]:
    """Points of the line from a mark to its name, where it needs one."""
    return iter(()) if box.is_near(mark) else dots(mark, box.nearest(mark))


def _candidates(mark: Place, width: float, bounds: Box) -> Iterator[Box]:
    """Around the mark, and everywhere on a grid."""
    x, y = mark
    rights = (x + _GAP, x - _GAP - width)
    # Beside a mark its bars are in the way, so the corners come first.
    for low in (y + 1, y - 1 - LINE, y - LINE / 2):
        for left in rights:
            yield from _inside(left, low, width, bounds)
    for low in (y + _GAP, y - _GAP - LINE):
        yield from _inside(x - width / 2, low, width, bounds)
    for row in range(int((bounds.high - bounds.low) / LINE)):
        for column in range(int((bounds.right - bounds.left) / _GRID)):
            yield from _inside(bounds.left + column * _GRID, bounds.low + row * LINE, width, bounds)


def _inside(left: float, low: float, width: float, bounds: Box) -> Iterator[Box]:
    """The box, moved to where it is not cut."""
    left = max(bounds.left, min(left, bounds.right - width))
    low = max(bounds.low, min(low, bounds.high - LINE))
    yield Box(left, low, left + width, low + LINE)


def _best(
    mark: Place, candidates: Iterator[Box], marks: Sequence[Place], taken: Sequence[Box], lines: Sequence[Place]
) -> Box:
    best, least = None, math.inf
    for box in sorted(candidates, key=lambda each: each.distance(mark)):
        if best is not None and box.distance(mark) >= least:
            break  # what follows is further away than the best is bad
        badness = box.distance(mark) + _OVER_NAME * sum(map(box.overlaps, taken))
        if badness < least:
            badness += _OVER_MARK * sum(box.distance(other) < _MARK for other in marks)
            badness += _OVER_LINE * sum(box.distance(dot) == 0 for dot in lines)
            badness += _OVER_LINE * sum(other.distance(dot) == 0 for dot in _lead(mark, box) for other in taken)
        if badness < least:
            best, least = box, badness
    assert best is not None, "there is always a candidate"
    return best
