"""The section "Reward against KL" of docs/benchmarks.md, and its plots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefopt.report.drawing import INK, SERIES, Sketch, plot_of
from prefopt.stats.intervals import Interval
from tests.benchmarks.against_trl.page import replace_marked, table
from tests.benchmarks.shell import machine
from tests.learning.frontier import plan
from tests.learning.frontier.plan import Run
from tests.learning.frontier.runs import Results, best, finished, reported
from tests.learning.frontier.score import KLS, Point, chosen, reward_at, share
from tests.learning.frontier.summary import Cell, cell, difference, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "make learn"
OURS = "ppo"
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


@dataclass(frozen=True)
class Found:
    """What the runs of a budget show.

    Attributes:
        budget: Completions sampled by each run.
        cells: By method and KL, of the methods whose runs are all done.
    """

    budget: int
    cells: dict[str, dict[float, Cell]]


def write(results: Results, docs: Path) -> None:
    """Write tables and plots of what is finished.

    Args:
        results: With the limit, and all runs of a method at least.
        docs: Folder of benchmarks.md.

    Raises:
        ValueError: When the page has no block for them.
    """
    found = [summed_up(results, budget) for budget in plan.BUDGETS]
    told = [limits(results), ""]
    for each in found:
        if each.cells:
            picture = docs / "images" / f"frontier-{each.budget}.png"
            picture.write_bytes(drawn(results, each))
            caption = f"Reward against KL with {each.budget:,} completions"
            told += [f"*{caption}*", "", *rows(results, each), "", f"![{caption}](images/{picture.name})", ""]
    told.append(f"Machine: {machine()}. {datetime.now(UTC).date().isoformat()}.")
    replace_marked(docs / "benchmarks.md", COMMAND, "\n".join(told))


def summed_up(results: Results, budget: int) -> Found:
    cells: dict[str, dict[float, Cell]] = {}
    for method in plan.methods(budget):
        if not finished(results, method, budget):
            continue
        cells[method] = {}
        for kl, setting in best(results, method, budget).items():
            runs = [Run(method, budget, setting, seed) for seed in plan.REPORTED] if setting else []
            cells[method][kl] = cell(setting, [results.path(run) for run in runs], results.limit(), kl)
    return Found(budget, cells)


def limits(results: Results) -> str:
    said = []
    measured = results.rows["limit"]["measured"]
    for kl in KLS:
        near = min(measured, key=lambda row: abs(row["kl"] - kl))
        reward = reward_at(results.limit(), kl)
        assert reward is not None
        said.append(
            f"{reward:.2f} ± {1.96 * near['reward_se']:.2f} at KL {kl:g} "
            f"({near['effective_samples']:.0f} effective completions of a prompt)"
        )
    base = results.rows["base"]["measured"][0]
    return (
        f"The base's reward is {base['reward']:.2f} ± {1.96 * base['reward_se']:.2f}, the limit's {' and '.join(said)}."
    )


def rows(results: Results, found: Found) -> list[str]:
    header = ["method"]
    for kl in KLS:
        header += [f"reward at KL {kl:g}", "share of the limit's gain", "PPO less this one"]
    lines = []
    for method, cells in found.cells.items():
        line = [NAMES[method]]
        for kl in KLS:
            line += of_cell(cells[kl], found.cells.get(OURS, {}).get(kl), method)
        lines.append(line)
    line = ["best of n from the base"]
    for kl in KLS:
        reward = reward_at(results.best_of_n(), kl)
        line += ["not reached", "–", "–"] if reward is None else [f"{reward:.2f}", percent(results, reward, kl), "–"]
    return table(header, [*lines, line])


def percent(results: Results, reward: float, kl: float) -> str:
    return f"{share(reward, results.limit(), kl):.0%}"


def of_cell(each: Cell, ours: Cell | None, method: str) -> list[str]:
    if each.reward is None or each.share is None:
        reached = f"not reached ({each.reached} of {len(plan.REPORTED)})" if each.setting else "not reached"
        return [reached, "–", "–"]
    gap = None if ours is None or method == OURS or not ours.reached else difference(ours, each)
    against = "–" if gap is None else f"{interval(gap, '{:+.2f}')}, {verdict(gap)}"
    share_of = f"{each.share.estimate:.0%} ({each.share.low:.0%}–{each.share.high:.0%})"
    return [interval(each.reward, "{:.2f}"), share_of, against]


def interval(found: Interval, form: str) -> str:
    estimate, low, high = (form.format(value) for value in (found.estimate, found.low, found.high))
    return f"{estimate} ({low} to {high})"


def drawn(results: Results, found: Found) -> bytes:
    """The plot of a budget, as PNG."""

    def paint(axes: Axes) -> None:
        limit = [point for point in results.limit() if point.kl <= FAR]
        axes.plot(*columns(limit), color=INK, linestyle="--", label="limit")
        axes.plot(
            *columns([p for p in results.best_of_n() if p.kl <= FAR]), color=INK, linestyle=":", label="best of n"
        )
        for method, cells in found.cells.items():
            path = envelope(results, method, found.budget)
            color, line = STYLES[method]
            axes.plot(*columns(path), color=color, linestyle=line, label=NAMES[method])
            for kl, each in cells.items():
                if each.reward is not None:
                    ends = [[each.reward.estimate - each.reward.low], [each.reward.high - each.reward.estimate]]
                    axes.errorbar([kl], [each.reward.estimate], ends, color=color, capsize=2, fmt="o", ms=3)
        axes.set(xlabel="KL from the base, nats", ylabel="reward")
        axes.legend(fontsize=7)

    return plot_of(Sketch("frontier", str(found.budget), "Reward against KL", "", paint, size=(7.2, 4.2)), 0).png


FAR = 8.0
"""Nats that the plots go up to."""


def envelope(results: Results, method: str, budget: int) -> list[Point]:
    """Mean reward of the reported seeds at each KL, with the setting that is best there of those that were chosen."""
    settings = dict.fromkeys(run.setting for run in reported(results, [budget], [method]))
    first = {name: results.path(Run(method, budget, name, plan.CHOSEN_ON)) for name in settings}
    path = [Point(0.0, results.rows["base"]["measured"][0]["reward"])]
    for kl in np.arange(0.1, FAR, 0.1):
        name = chosen(first, float(kl))
        if name is None:
            continue
        runs = (results.path(Run(method, budget, name, seed)) for seed in plan.REPORTED)
        rewards = [reward for path_ in runs if (reward := reward_at(path_, float(kl))) is not None]
        if len(rewards) == len(plan.REPORTED):
            path.append(Point(float(kl), sum(rewards) / len(rewards)))
    return path


def columns(path: list[Point]) -> tuple[list[float], list[float]]:
    return [point.kl for point in path], [point.reward for point in path]
