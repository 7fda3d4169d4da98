"""What a stage logged over its steps as one plot, with what is known to be healthy behind it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.report.drawing import INK, SERIES, Sketch, legend
from prefopt.report.rundata import Point, StageData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 300
FARTHEST = 5.0
"""A mark this many times higher than all that was logged would flatten the curve: it is named at the edge instead."""
_DASHES = (0, (4, 3))
_HEALTHY = SERIES[2]
_SIDE = 0.35  # share of the width that a label takes
_LINE = 0.085  # share of the height that it takes


@dataclass(frozen=True)
class Mark:
    """A value that a curve is compared with: a dashed line, or a band from `low` to `high`.

    Attributes:
        label: Written at it, in plain words.
        high: Upper end of a healthy range; None for a line.
    """

    label: str
    low: float
    high: float | None = None

    @property
    def ends(self) -> tuple[float, ...]:
        """One or two values."""
        return (self.low,) if self.high is None else (self.low, self.high)


def _no_marks(stage: StageData) -> Sequence[Mark]:
    return ()


@dataclass(frozen=True)
class Curves:
    """A plot of metrics over steps; drawn where at least one of them was logged.

    Attributes:
        metrics: (metric, legend) pairs.
        reference: Where a dashed line without a label is drawn.
        marks: What the curves of a stage are compared with.
        group: Heading that the plot stands under.
        only_changing: Not drawn where all values are the same.
        log_scale: Powers of ten; drawn where all values are above 0, and linear otherwise.
    """

    name: str
    title: str
    caption: str
    y_label: str
    metrics: tuple[tuple[str, str], ...]
    reference: float | None = None
    marks: Callable[[StageData], Sequence[Mark]] = _no_marks
    group: str = ""
    only_changing: bool = False
    log_scale: bool = False


def sketch_of(curves: Curves, stage: StageData) -> Sketch | None:
    """The plot for a stage; None where it logged nothing for it."""
    present = [(stage.series[m], title) for m, title in curves.metrics if stage.series.get(m)]
    if not any(len(points) > 1 for points, _ in present):
        return None
    if curves.only_changing and len({value for points, _ in present for _, value in points}) == 1:
        return None
    paint = _painter(curves, present, curves.marks(stage))
    return Sketch(curves.name, stage.name, curves.title, curves.caption, paint, group=curves.group)


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[tuple[float, float, float, float]]:
    """A long series as few points: (step, mean, lowest, highest) of equal runs of neighbours; short ones unchanged."""
    if len(points) <= most:
        return [(step, value, value, value) for step, value in points]
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    thinned = []
    for start, end in itertools.pairwise(edges):
        values = [value for _, value in points[start:end]]
        middle = points[(start + end - 1) // 2][0]
        thinned.append((middle, sum(values) / len(values), min(values), max(values)))
    return thinned


def _painter(
    curves: Curves, present: Sequence[tuple[Sequence[Point], str]], marks: Sequence[Mark]
) -> Callable[[Axes], None]:
    values = [value for points, _ in present for _, value in points]

    def paint(axes: Axes) -> None:
        if curves.log_scale and min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"1e{round(math.log10(value))}")
        if curves.reference is not None:
            axes.axhline(curves.reference, color=INK, linewidth=0.8, linestyle=_DASHES)
        for (points, title), colour in zip(present, itertools.cycle(SERIES), strict=False):
            thinned = thin(points)
            steps = [step for step, *_ in thinned]
            marker = "o" if len(points) <= 30 else ""
            axes.plot(
                steps, [mean for _, mean, _, _ in thinned], color=colour, label=title, marker=marker, markersize=3.5
            )
            if len(points) > len(thinned):
                low, high = [row[2] for row in thinned], [row[3] for row in thinned]
                axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        _mark(axes, marks, [points for points, _ in present])
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(curves.y_label)
        legend(axes)

    return paint


def _mark(axes: Axes, marks: Sequence[Mark], series: Sequence[Sequence[Point]]) -> None:
    """Puts marks behind the curves, and at the upper edge the names of those that are too far up to be shown."""
    highest = max(value for points in series for _, value in points)
    is_log = axes.get_yscale() == "log"
    beyond = [mark for mark in marks if mark.low > FARTHEST * highest and not is_log]
    shown = [mark for mark in marks if mark not in beyond]
    for mark in shown:
        if mark.high is None:
            axes.axhline(mark.low, color=INK, linewidth=0.8, linestyle=_DASHES)
        else:
            axes.axhspan(mark.low, mark.high, color=_HEALTHY, alpha=0.13, linewidth=0)
    if marks:
        axes.margins(y=0.16 if beyond else 0.08)
    axes.autoscale_view()  # otherwise only drawing would do it, and labels would be placed by stale limits
    for mark in shown:
        _label(axes, mark, series)
    if beyond:
        text = "   ".join(f"↑ {mark.label}" for mark in beyond)
        axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=INK)


def _label(axes: Axes, mark: Mark, series: Sequence[Sequence[Point]]) -> None:
    """Writes a mark's name where it is furthest from the curves.

    That is at the left or at the right, inside a band, and above or below a line; heights are shares of the axes.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [tuple(row) for part in series for row in to_axes.transform([(step, y) for step, y, *_ in thin(part)])]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    reach = _SIDE * (last - first)
    ends = [float(to_axes.transform((0, end))[1]) for end in mark.ends]
    places = []
    for height, is_above in ((ends[-1], mark.high is None), (ends[0], mark.high is not None)):
        middle = height + (_LINE if is_above else -_LINE) / 2
        if not _LINE / 2 <= middle <= 1 - _LINE / 2:
            continue
        for is_left in (False, True):
            near = [y for x, y in points if (x <= first + reach if is_left else x >= last - reach)]
            places.append((min(abs(y - middle) for y in near), middle, is_left))
    if places:
        _, middle, is_left = max(places, key=lambda place: round(place[0], 2))
        x, side = (0.01, "left") if is_left else (0.99, "right")
        axes.text(x, middle, mark.label, transform=axes.transAxes, ha=side, va="center", fontsize=8, color=INK)
