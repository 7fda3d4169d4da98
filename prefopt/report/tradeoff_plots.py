"""The plots of what avoiding violations costs: reward against violation rate, a plot per cost of an evaluation."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from prefopt.report.damage import is_real
from prefopt.report.drawing import INK, SERIES, Sketch, plain
from prefopt.report.evaluation import Estimate, baseline_of, estimates
from prefopt.report.labels import Box, Place, dots, placed
from prefopt.report.rundata import StageData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (5.4, 3.5)
_RATE = re.compile(r"violation_rate/([A-Za-z0-9_-]+)")  # also part of a file's name
_SCORES = {"gold": "gold reward", "reward": "reward"}
_NARROWEST = 0.02  # of the axis of rates: rates that are all 0 must not look far apart
_LONGEST_LABEL = 24
_NEAR = 14.0  # points: between marks that are nearer there is no room for an arrow

_CAPTION = (
    "Across: the share of answers that violate. Up: the reward of all answers. The ring is the baseline, before; "
    "arrows lead to the policies, after. To the left at the same height: fewer violations, at no loss. Downwards: "
    "reward was paid. Bars are 95 % intervals."
)


@dataclass(frozen=True)
class Traded:
    """A policy as the plot of one cost shows it.

    Attributes:
        is_baseline: Whether others are compared with it.
        rate: Share of its answers that violate, with Wilson's interval.
        score: Mean reward of its answers.
    """

    policy: str
    is_baseline: bool
    rate: Estimate
    score: Estimate

    @property
    def place(self) -> tuple[float, float]:
        """Its mark, in the units of the axes."""
        return self.rate.mean, self.score.mean

    @property
    def label(self) -> str:
        """Written at its mark; names of a sweep differ at their ends, so a long one loses its middle."""
        half = (_LONGEST_LABEL - 2) // 2
        fits = len(self.policy) <= _LONGEST_LABEL
        name = plain(self.policy if fits else f"{self.policy[:half]}..{self.policy[-half:]}")
        return f"before: {name}" if self.is_baseline else name


def tradeoff_sketches(stage: StageData) -> Iterator[Sketch]:
    """A plot for every cost that an evaluation measured of several policies; none without costs or without a reward."""
    found = estimates(stage.metrics)
    score = next((name for name in _SCORES if any(name in values for values in found.values())), "")
    names = sorted({match[1] for values in found.values() for match in map(_RATE.fullmatch, values) if match})
    for name in names:
        policies = _policies(found, baseline_of(stage), f"violation_rate/{name}", score)
        if len(policies) > 1:
            yield Sketch(
                f"tradeoff-{name}",
                stage.name,
                f"Reward against violations: {name}",
                _CAPTION,
                _painter(policies, _SCORES[score]),
                size=_SIZE,
                evidence=True,
                description=_in_words(policies, _SCORES[score]),
            )


def _policies(found: Mapping[str, Mapping[str, Estimate]], baseline: str, rate: str, score: str) -> list[Traded]:
    """The policies with both numbers, the baseline first."""
    traded = [
        Traded(policy, policy == baseline, values[rate], values[score])
        for policy, values in found.items()
        if rate in values and score in values and _is_sound(values[rate], 0.0, 1.0) and _is_sound(values[score])
    ]
    return sorted(traded, key=lambda each: not each.is_baseline)


def _is_sound(estimate: Estimate, least: float = -1e30, most: float = 1e30) -> bool:
    """Whether it can be drawn: numbers of a plausible size."""
    ends = (estimate.mean if end is None else end for end in (estimate.low, estimate.mean, estimate.high))
    return all(is_real(end) and least <= end <= most for end in ends)


def _in_words(policies: Sequence[Traded], score: str) -> str:
    """The plot's numbers for those who cannot see it."""
    return " ".join(
        f"{'Before, ' if each.is_baseline else ''}{each.policy}: {_said(each.rate, '.1%')} violate, "
        f"{score} {_said(each.score, '.2f')}."
        for each in policies
    )


def _said(estimate: Estimate, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:{form}}"
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def _painter(policies: Sequence[Traded], score: str) -> Callable[[Axes], None]:
    colours = itertools.cycle(SERIES)
    coloured = [(each, INK if each.is_baseline else next(colours)) for each in policies]

    def paint(axes: Axes) -> None:
        for each, colour in coloured:
            axes.errorbar(
                *each.place,
                xerr=_reach(each.rate),
                yerr=_reach(each.score),
                color=colour,
                marker="o",
                markersize=8 if each.is_baseline else 5.5,
                markerfacecolor="none" if each.is_baseline else colour,
                markeredgewidth=1.4 if each.is_baseline else 0.0,
                elinewidth=1.0,
                clip_on=False,
            )
        farthest = max(each.rate.mean if each.rate.high is None else each.rate.high for each in policies)
        width = max(farthest, _NARROWEST)
        axes.set_xlim(-0.04 * width, 1.04 * width)
        axes.margins(y=0.14)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value + 0.0:.3g} %")
        axes.set_xlabel("answers that violate")
        axes.set_ylabel(score)
        _write(axes, coloured)

    return paint


def _reach(estimate: Estimate) -> tuple[tuple[float], tuple[float]] | None:
    """How far an interval reaches down and up; None where there is none."""
    if estimate.low is None or estimate.high is None:
        return None
    # An estimate at an end of its interval may lie beyond it by rounding.
    return (max(0.0, estimate.mean - estimate.low),), (max(0.0, estimate.high - estimate.mean),)


def _write(axes: Axes, coloured: Sequence[tuple[Traded, str]]) -> None:
    """Arrows from the baseline, and every policy's name where it covers as little as possible."""
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()  # places of marks are known once it is laid out
    points = 72.0 / figure.dpi

    def at(x: float, y: float) -> Place:
        across, up = axes.transData.transform((x, y)) * points
        return float(across), float(up)

    marks = [at(*each.place) for each, _ in coloured]
    lines = [dot for each, _ in coloured for bar in _bars(each, at) for dot in dots(*bar)]
    before, start = coloured[0][0], marks[0]
    for (each, colour), mark in zip(coloured, marks, strict=True):
        if before.is_baseline and math.dist(start, mark) > _NEAR:
            lines += dots(start, mark)
            arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.55, "shrinkA": 5, "shrinkB": 5}
            axes.annotate("", each.place, xytext=before.place, arrowprops=arrow)
    extent = axes.get_window_extent()
    bounds = Box(extent.x0 * points, extent.y0 * points, extent.x1 * points, extent.y1 * points)
    boxes = placed(marks, [each.label for each, _ in coloured], bounds, lines)
    for (each, colour), mark, box in zip(coloured, marks, boxes, strict=True):
        _name(axes, each, colour, mark, box)


def _name(axes: Axes, each: Traded, colour: str, mark: Place, box: Box) -> None:
    """Writes a policy's name into its box, and draws a line to it from a mark that is far."""
    end = box.nearest(mark)
    corner = ((end[0] - box.left) / (box.right - box.left), (end[1] - box.low) / (box.high - box.low))
    lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": corner, "shrinkA": 0, "shrinkB": 3}
    note = axes.annotate(
        each.label,
        each.place,
        xytext=((box.left + box.right) / 2 - mark[0], (box.low + box.high) / 2 - mark[1]),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=8,
        arrowprops=None if box.is_near(mark) else lead,
    )
    note.set_in_layout(False)  # a long name must not make the plot smaller


def _bars(each: Traded, at: Callable[[float, float], Place]) -> Iterator[tuple[Place, Place]]:
    """The two bars of a mark, in points."""
    x, y = each.rate, each.score
    if x.low is not None and x.high is not None:
        yield at(x.low, y.mean), at(x.high, y.mean)
    if y.low is not None and y.high is not None:
        yield at(x.mean, y.low), at(x.mean, y.high)
