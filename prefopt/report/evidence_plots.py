"""Plots of what evaluations found: reliability, best of n, and reward against distance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prefopt.report.drawing import INK, SERIES, Sketch, legend, plain
from prefopt.report.findings import BestOf, Bin, Law, Moved
from prefopt.report.rundata import StageData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TALL = (5.4, 3.5)
_DASHES = (0, (4, 3))
_LAW_POINTS = 60
_CHOICES = {"chosen_by_reward": "by the reward", "chosen_by_proxy": "by the proxy"}
_LONGEST_LABEL = 24

_RELIABILITY = (
    "Across: the probability that the reward model gives an answer of being the preferred one. Up: how often it was. "
    "On the dashed line its probabilities mean what they say; flatter than the line is too sure, steeper too modest. "
    "Larger points hold more pairs. Before and after: without and with a temperature that was fitted on other prompts."
)
_BEST_OF_N = (
    "Take n answers of the baseline and keep the best: the more to choose from, the further right. Chosen by the "
    "reward itself it is the most that choosing can give; the gap to the proxy's curve is what the proxy gives away, "
    "and a proxy's curve that bends down is over-optimised. Bands are 95 % intervals."
)
_OVEROPTIMISATION = (
    "Every policy starts at the baseline on the left and moves away from it as it learns. Both lines should rise. A "
    "dashed line that climbs while the solid one falls means that the policy pleases its proxy and nobody else. The "
    "two have different units: compare directions, not heights."
)


def evidence_sketches(stage: StageData) -> Iterator[Sketch]:
    """Every plot that the findings of a stage have data for."""
    found = stage.evidence
    bins = {name: [b for b in given if b.size > 0] for name, given in (found.reliability or {}).items()}
    if any(bins.values()):
        yield _sketch(stage, "reliability", "Does it know when it is right?", _RELIABILITY, _reliability(bins))
    points = [point for point in found.best_of_n if point.chosen]
    if len(points) > 1:
        caption = " ".join([_BEST_OF_N, *_law_sentences(found.laws or {}, math.sqrt(max(p.kl for p in points)))])
        yield _sketch(stage, "best-of-n", "Best of n", caption, _best_of_n(points, found.laws or {}))
    if len(found.overoptimisation) > 1:
        title = "Reward against distance"
        yield _sketch(stage, "distance", title, _OVEROPTIMISATION, _overoptimisation(found.overoptimisation))


def _sketch(stage: StageData, name: str, title: str, caption: str, paint: Callable[[Axes], None]) -> Sketch:
    return Sketch(name, stage.name, title, caption, paint, size=_TALL, evidence=True)


def _reliability(series: Mapping[str, Sequence[Bin]]) -> Callable[[Axes], None]:
    largest = max(b.size for bins in series.values() for b in bins)
    colours = {"before": SERIES[1], "after": SERIES[0]}

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=_DASHES)
        for name, bins in series.items():
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            axes.plot(x, y, color=colours[name], linewidth=1.2, alpha=0.7)
            sizes = [12 + 130 * b.size / largest for b in bins]
            axes.scatter(x, y, s=sizes, color=colours[name], alpha=0.6, linewidths=0, label=name)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("confidence of the reward model")
        axes.set_ylabel("share that is right")
        legend(axes)

    return paint


def law_at(law: Law, start: float, distance: float) -> float:
    """Reward that a law foresees at a distance, from the reward at distance 0."""
    return start + distance * (law.alpha - law.beta * distance)


def _law_sentences(laws: Mapping[str, Law], farthest: float) -> list[str]:
    if not laws:
        return []
    fits = " and ".join(f"{law.r_squared:.0%} of the choice {_CHOICES[name]}" for name, law in laws.items())
    said = [f"Dashed: the fitted law R₀ + d (α − β d), with d the root of KL; it explains {fits}."]
    # A peak further out is a guess about what nobody measured.
    peaks = {name: law.peak for name, law in laws.items() if law.peak is not None and law.peak <= farthest}
    return said + [f"Chosen {_CHOICES[name]}, answers get worse beyond d = {peak:.2f}." for name, peak in peaks.items()]


def _best_of_n(points: Sequence[BestOf], laws: Mapping[str, Law]) -> Callable[[Axes], None]:
    farthest = math.sqrt(max(point.kl for point in points))

    def paint(axes: Axes) -> None:
        for (name, title), colour in zip(_CHOICES.items(), SERIES, strict=False):
            present = sorted((p for p in points if name in p.chosen), key=lambda p: p.kl)
            if not present:
                continue
            x, found = [math.sqrt(p.kl) for p in present], [p.chosen[name] for p in present]
            law, first = laws.get(name), next((p for p in present if p.n == 1), None)
            fitted = law is not None and first is not None
            axes.fill_between(x, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                x,
                [e.estimate for e in found],
                color=colour,
                label=title,
                marker="o",
                markersize=4,
                linestyle="" if fitted else "-",
            )
            if law is not None and first is not None:
                start = first.chosen[name].estimate
                steps = [farthest * i / _LAW_POINTS for i in range(_LAW_POINTS + 1)]
                values = [law_at(law, start, d) for d in steps]
                axes.plot(steps, values, color=colour, linewidth=1.2, linestyle=_DASHES)
        _number_points(axes, points)
        axes.set_xlabel("√KL from one answer (√nats)")
        axes.set_ylabel("reward")
        legend(axes)

    return paint


def _number_points(axes: Axes, points: Sequence[BestOf]) -> None:
    """Writes n at the upper curve; the first says what the number is."""
    for index, point in enumerate(sorted(points, key=lambda p: p.n)):
        top = max(e.estimate for e in point.chosen.values())
        text = f"n = {point.n}" if index == 0 else f"{point.n}"
        axes.annotate(
            text,
            (math.sqrt(point.kl), top),
            xytext=(5, -6) if index == 0 else (0, 7),
            textcoords="offset points",
            ha="left" if index == 0 else "center",
            va="top" if index == 0 else "bottom",
            fontsize=8,
        )
    axes.margins(y=0.12)


def _overoptimisation(points: Sequence[Moved]) -> Callable[[Axes], None]:
    start = next((p for p in points if p.distance == 0 and p.step is None), None)
    policies = list(dict.fromkeys(p.policy for p in points if p is not start))

    def paint(axes: Axes) -> None:
        from matplotlib.lines import Line2D

        for policy, colour in zip(policies, itertools.cycle(SERIES), strict=False):
            own = [p for p in points if p.policy == policy and p is not start]
            # Training steps in their order; what has no step is the finished policy.
            own.sort(key=lambda p: math.inf if p.step is None else p.step)
            _path(axes, ([start] if start is not None else []) + own, colour)
        middle = max(p.distance for p in points) / 2
        for point, above in _labels(points, policies, start):
            note = axes.annotate(
                plain(point.policy[:_LONGEST_LABEL]),
                (point.distance, point.reward),
                xytext=(4, 5 if above else -5),
                textcoords="offset points",
                ha="left" if point.distance < middle else "right",
                va="bottom" if above else "top",
                fontsize=8,
            )
            note.set_in_layout(False)  # a long name must not make the plot smaller
        axes.plot([], [], color=INK, label="reward", marker="o", markersize=4)
        if any(p.proxy is not None for p in points):
            axes.add_line(Line2D([], [], color=INK, label="proxy", linestyle=_DASHES, marker="s", markersize=3.5))
        axes.margins(x=0.08, y=0.16)
        axes.set_xlabel("√KL from the baseline (√nats)")
        axes.set_ylabel("reward, proxy")
        legend(axes)

    return paint


def _path(axes: Axes, path: Sequence[Moved], colour: str) -> None:
    axes.plot([p.distance for p in path], [p.reward for p in path], color=colour, marker="o", markersize=4)
    with_proxy = [(p.distance, p.proxy) for p in path if p.proxy is not None]
    if with_proxy:
        x, y = zip(*with_proxy, strict=True)
        axes.plot(x, y, color=colour, linestyle=_DASHES, linewidth=1.2, marker="s", markersize=3.5)


def _labels(points: Sequence[Moved], policies: Sequence[str], start: Moved | None) -> Iterator[tuple[Moved, bool]]:
    """(point, whether above it) of every label: the end of each policy, and the baseline."""
    if start is not None:
        yield start, False
    ends = []
    for policy in policies:
        own = [p for p in points if p.policy == policy and p is not start]
        ends.append(max(own, key=lambda p: math.inf if p.step is None else p.step))
    # Neighbours that lie close are labelled on different sides: the higher one above.
    for index, point in enumerate(sorted(ends, key=lambda p: -p.reward)):
        yield point, index % 2 == 0
