"""The plots of gain against KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prefopt.report.drawing import INK, SERIES, Sketch, plot_of
from tests.learning.frontier import plan
from tests.learning.frontier.plan import Run
from tests.learning.frontier.runs import Results, reported
from tests.learning.frontier.score import Point, chosen, gain_at
from tests.learning.frontier.summary import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "ppo": "PPO",
    "ppo, shared value": "PPO, shared value",
    "ppo, scored at the end": "PPO, scored at the end alone",
    "rloo": "RLOO (TRL)",
    "grpo": "GRPO (TRL)",
    "dpo": "DPO on own samples",
    "iterative dpo": "DPO, 4 rounds",
}
_LINES = {"ppo, shared value": "-.", "ppo, scored at the end": ":"}
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
        for path, style, label in ((results.limit(), "--", "limit"), (results.best_of_n(), ":", "best of n")):
            axes.plot(*gains(path), color=INK, linestyle=style, label=label)
        for method, of_method in cells.items():
            color, line = STYLES[method]
            axes.plot(*envelope(results, method, budget), color=color, linestyle=line, label=NAMES[method])
            for kl, each in of_method.items():
                if each.gain is not None:
                    estimate, low, high = each.gain.interval
                    ends = [[estimate - low], [high - estimate]]
                    axes.errorbar([kl], [estimate], ends, color=color, capsize=2, fmt="o", ms=3)
        axes.set(xlabel="KL from the base, nats", ylabel="reward over the base's")
        axes.legend(fontsize=7)

    return plot_of(Sketch("frontier", str(budget), "Reward against KL", "", paint, size=(7.2, 4.2)), 0).png


def gains(path: Sequence[Point]) -> Columns:
    """A path's KLs and gains, as far as the plot goes."""
    near = [point for point in path if point.kl <= FAR]
    return [point.kl for point in near], [point.reward - path[0].reward for point in near]


def envelope(results: Results, method: str, budget: int) -> Columns:
    """Mean gain of the reported seeds at each KL, with the setting that is best there of those that were chosen."""
    settings = dict.fromkeys(run.setting for run in reported(results, [budget], [method]))
    first = {name: results.path(Run(method, budget, name, plan.CHOSEN_ON)) for name in settings}
    kls, means = [0.0], [0.0]
    for kl in map(float, np.arange(STEP, FAR, STEP)):
        name = chosen(first, kl)
        if name is None:
            continue
        found = [gain_at(results.path(Run(method, budget, name, seed)), kl) for seed in plan.REPORTED]
        reached = [gain.value for gain in found if gain is not None]
        if len(reached) == len(found):
            kls.append(kl)
            means.append(sum(reached) / len(reached))
    return kls, means
