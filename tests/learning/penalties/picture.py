"""The picture of the page: how often each policy violates, and what it keeps of the unconstrained gain."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefopt.report.drawing import GRID, INK, SERIES
from tests.learning.penalties import plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR = 1e-3
"""Rates are drawn on a logarithmic axis, and none below this."""
TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)
FREE, LEARNED, WRITTEN = SERIES[1], SERIES[0], SERIES[2]


def png(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """One panel for each part, a mark for every policy and seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(parts), 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (part, seeds) in enumerate(parts.items()):
        _panel(figure.add_subplot(1, len(parts), place + 1), part, seeds)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _panel(axes: Axes, part: str, seeds: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title(plan.PARTS[part].title, fontsize=10, color=INK)
    axes.set_xscale("log")
    axes.axvline(plan.TARGET, color=INK, linewidth=0.8, linestyle=":")
    axes.axhline(plan.KEPT, color=INK, linewidth=0.8, linestyle=":")
    axes.grid(color=GRID, linewidth=0.7)
    said = set()
    for measured in seeds:
        for name, found in measured["policies"].items():
            if name != "free" and found["kept"] is None:
                continue
            kind, colour, marker = _look(name)
            rate, low, high = (max(FLOOR, value) for value in found["violations"])
            kept, least, most = found["kept"] or (1.0, 1.0, 1.0)
            axes.errorbar(
                rate, kept, xerr=[[rate - low], [high - rate]], yerr=[[kept - least], [most - kept]], color=colour,
                marker=marker, markersize=5, linewidth=0.9, linestyle="none", label=None if kind in said else kind,
            )  # fmt: skip
            said.add(kind)
    axes.set_xlim(0.8 * FLOOR, 1.4)
    axes.set_xticks(TICKS, [f"{100 * tick:g} %" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("completions that violate")
    axes.set_ylabel("share of the unconstrained gain")
    axes.legend(frameon=False, fontsize=8)


def _look(name: str) -> tuple[str, str, str]:
    if name == "free":
        return "no penalty", FREE, "s"
    return ("weight learned, target 2 %", LEARNED, "o") if name == "lagrange" else ("written weights", WRITTEN, "^")
