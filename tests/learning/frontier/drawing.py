"""The plots of gain against KL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prefopt.report.drawing import INK, SERIES, Sketch, plot_of
from tests.learning.frontier import plan
from tests.learning.frontier.plan import Run
from tests.learning.frontier.runs import Results, reported
from tests.learning.frontier.score import Point, gain_at
from tests.learning.frontier.summary import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "ppo": "PPO",
    "ppo, scored at the end": "PPO, scored at the end alone",
    "ppo, one epoch": "PPO, one epoch",
    "ppo, one epoch, shared value": "PPO, one epoch, shared value",
    "ppo, one epoch, scored at the end": "PPO, one epoch, scored at the end alone",
    "rloo": "RLOO (TRL)",
    "grpo": "GRPO (TRL)",
    "dpo": "DPO on own samples",
    "iterative dpo": "DPO, 4 rounds",
}
_LINES: Mapping[str, str | tuple[float, tuple[float, ...]]] = {
    "ppo, scored at the end": (0, (4, 1, 1, 1, 1, 1, 1, 1)),
    "ppo, one epoch": "--",
    "ppo, one epoch, shared value": "-.",
    "ppo, one epoch, scored at the end": ":",
}
STYLES = {name: (SERIES[0], line) for name, line in _LINES.items()} | {
    name: (color, "-") for name, color in zip((each for each in NAMES if each not in _LINES), SERIES, strict=False)
}
"""Colour and line of each method; variants of PPO have its colour."""
FAR = 8.0
"""Nats that the plots go up to."""
STEP = 0.1

Columns = tuple[list[float], list[float]]


def drawn(results: Results, budget: int, cells: Mapping[str, Mapping[float, Cell]]) -> bytes:
    """The plot of a budget, as PNG.

    Args:
        results: With the limit, and the runs of every method that has cells.
        budget: Completions sampled by each run.
        cells: By method and KL.
    """

    def paint(axes: Axes) -> None:
        for bound, style, label in ((results.limit(), "--", "limit"), (results.best_of_n(), ":", "best of n")):
            axes.plot(*gains(bound), color=INK, linestyle=style, label=label)
        for method, of_method in cells.items():
            color, line = STYLES[method]
            for number, path in enumerate(means(results, method, budget)):
                axes.plot(*path, color=color, linestyle=line, label=NAMES[method] if number == 0 else None)
            for kl, each in of_method.items():
                if each.gain is not None:
                    estimate, low, high = each.gain.interval
                    ends = [[estimate - low], [high - estimate]]
                    axes.errorbar([kl], [estimate], ends, color=color, capsize=2, fmt="o", ms=3)
        axes.set(xlabel="KL from the base, nats", ylabel="reward over the base's")
        axes.legend(fontsize=7, handlelength=4)  # so that patterns of lines can be told apart

    return plot_of(Sketch("frontier", str(budget), "Reward against KL", "", paint, size=(7.2, 4.2)), 0).png


def gains(path: Sequence[Point]) -> Columns:
    """A path's KLs and gains, as far as the plot goes."""
    near = [point for point in path if point.kl <= FAR]
    return [point.kl for point in near], [point.reward - path[0].reward for point in near]


def means(results: Results, method: str, budget: int) -> Iterator[Columns]:
    """KLs that all reported seeds reached, and their mean gain there, of each setting that was chosen."""
    for name in dict.fromkeys(run.setting for run in reported(results, [budget], [method])):
        paths = [results.path(Run(method, budget, name, seed)) for seed in plan.REPORTED]
        kls, gained = [0.0], [0.0]
        for kl in map(float, np.arange(STEP, FAR, STEP)):
            found = [gain.value for path in paths if (gain := gain_at(path, kl)) is not None]
            if len(found) == len(paths):
                kls.append(kl)
                gained.append(sum(found) / len(found))
        yield kls, gained
