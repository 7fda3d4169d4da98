"""The section "Reward against KL" of docs/benchmarks.md, and its plots."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from prefopt.stats.intervals import Interval
from tests.benchmarks.against_trl.page import replace_marked, table
from tests.benchmarks.shell import machine
from tests.learning.frontier import plan, world
from tests.learning.frontier.drawing import NAMES, drawn
from tests.learning.frontier.estimates import Estimate, holm
from tests.learning.frontier.plan import Run
from tests.learning.frontier.runs import Results, best, finished
from tests.learning.frontier.score import KLS, Gain, gain_at
from tests.learning.frontier.summary import Cell, Compared, against, cell, compared, verdict

COMMAND = "make learn"
OURS, BEST_OF_N = "ppo", "best of n"
HEADER = [
    "method", "setting", "seeds", "gain", "share of the limit's gain", "policies at", "PPO less this one",
    "on unseen openings: gain; PPO less this one",
]  # fmt: skip
Cells = Mapping[str, Mapping[float, Cell]]
"""By method and KL, of the methods whose runs are all done."""
Key = tuple[int, float, str]
"""A comparison with PPO: budget, KL, the other method."""


def write(results: Results, docs: Path) -> None:
    """Write tables and plots of what is finished.

    Args:
        results: With the base and the limit.
        docs: Folder of benchmarks.md.

    Raises:
        ValueError: When the page has no block for them.
    """
    found = {budget: cells for budget in plan.BUDGETS if (cells := summed_up(results, budget))}
    differences = comparisons(results, found)
    held = holm({key: each.difference.chance for key, each in differences.items() if each is not None})
    told = [limits(results), "", openings(results), ""]
    if differences:
        told += [claim(differences, held), ""]
    for budget, cells in found.items():
        picture = docs / "images" / f"frontier-{budget}.png"
        picture.write_bytes(drawn(results, budget, cells))
        for kl in KLS:
            ours = cells[OURS][kl].there if OURS in cells else None
            lines = [
                [
                    *line_of(results, (budget, kl, name), cells[name][kl], differences, held),
                    on_unseen(cells[name][kl].there, None if name == OURS else ours),
                ]
                for name in cells
            ]
            lines.append([*of_best(results, (budget, kl, BEST_OF_N), differences, held), "–"])
            told += [f"*Gain in reward at KL {kl:g} with {budget:,} completions*", "", *table(HEADER, lines), ""]
            told += of_variants(cells, kl)
        told += [f"![Reward against KL with {budget:,} completions](images/{picture.name})", ""]
    told.append(f"Machine: {machine()}. {datetime.now(UTC).date().isoformat()}.")
    replace_marked(docs / "benchmarks.md", COMMAND, "\n".join(told))


def summed_up(results: Results, budget: int) -> Cells:
    cells: dict[str, dict[float, Cell]] = {}
    for method in plan.methods(budget):
        if not finished(results, method, budget):
            continue
        cells[method] = {}
        for kl, setting in best(results, method, budget).items():
            if setting is None:
                cells[method][kl] = Cell(None, [None] * len(plan.REPORTED))
            else:
                runs = [Run(method, budget, setting, seed) for seed in plan.REPORTED]
                all_openings, unseen = ([results.path(run, part) for run in runs] for part in (False, True))
                cells[method][kl] = cell(setting, all_openings, kl, unseen)
    return cells


def comparisons(results: Results, found: Mapping[int, Cells]) -> dict[Key, Compared | None]:
    """PPO with every other method, variant and the best of n; None where one of the two did not reach the KL."""
    differences: dict[Key, Compared | None] = {}
    for budget, cells in found.items():
        for kl in KLS if OURS in cells else ():
            ours = cells[OURS][kl]
            for name, others in cells.items():
                if name != OURS:
                    differences[budget, kl, name] = compared(ours, others[kl])
            known = gain_at(results.best_of_n(), kl)
            differences[budget, kl, BEST_OF_N] = None if known is None else against(ours, known)
    return differences


def claim(differences: Mapping[Key, Compared | None], held: set[Key]) -> str:
    """Of how many comparisons PPO is above; variants of PPO are no other methods, and do not count."""
    others = {key: each for key, each in differences.items() if key[2] not in plan.VARIANTS}
    verdicts = [verdict(each.difference, key in held) for key, each in others.items() if each is not None]
    made = sum(each is not None for each in differences.values())
    return (
        f"PPO is above the other methods and the best of n in {verdicts.count('above')} of {len(others)} comparisons, "
        f"below in {verdicts.count('below')}; {len(others) - len(verdicts)} could not be made, as one side did not "
        f"reach the KL, and count for nothing. *Above* holds for all of them together at 97.5 % (Holm's method, over "
        f"the {made} comparisons of the tables); *below* is by each interval alone."
    )


def limit_at(results: Results, kl: float) -> Gain:
    """What can be gained at a KL.

    Raises:
        ValueError: When the limit was not estimated up to there.
    """
    found = gain_at(results.limit(), kl)
    if found is None:
        raise ValueError(f"the limit is not known at a KL of {kl:g}")
    return found


def limits(results: Results) -> str:
    said = []
    measured = results.rows["limit"]["measured"]
    for kl in KLS:
        near, gain = min(measured, key=lambda row: abs(row["kl"] - kl)), limit_at(results, kl)
        spread = near["effective_samples_se"] * world.HELD_OUT**0.5
        few = f", below 10 for {near['few']:.0%} of the prompts" if "few" in near else ""
        said.append(
            f"{gain.value:.2f} ± {1.96 * gain.error:.2f} at KL {kl:g} ({near['effective_samples']:.0f} effective "
            f"completions of a prompt, standard deviation {spread:.0f}{few})"
        )
    base, of_limit = results.base, measured[0]
    return (
        f"The base's reward is {base['reward']:.2f} ± {1.96 * base['reward_se']:.2f}; by the limit's own completions, "
        f"which are more, {of_limit['reward']:.2f} ± {1.96 * of_limit['reward_se']:.2f}. "
        f"The limit's gain is {' and '.join(said)}."
    )


def openings(results: Results) -> str:
    found = results.rows["base"]["openings"]
    unseen = results.base["unseen"]
    return (
        f"Of {found['drawn']} openings drawn for training {found['distinct']} are distinct. Of {found['held_out']} "
        f"held-out ones {found['held_out'] - found['unseen']} are also trained on and {found['unseen']} are not; on "
        f"these the base's reward is {unseen['reward']:.2f}."
    )


def line_of(
    results: Results, key: Key, each: Cell, differences: Mapping[Key, Compared | None], held: set[Key]
) -> list[str]:
    """A method's row."""
    _, kl, method = key
    first, seeds = [NAMES[method], each.setting or "–"], f"{len(each.reached)} of {len(plan.REPORTED)}"
    share = each.share(limit_at(results, kl))
    if each.gain is None or share is None:
        why = "with any setting on the first seed" if each.setting is None else "with two seeds"
        return [*first, "–" if each.setting is None else seeds, f"not reached {why}", *["–"] * 2, of_pair(key, None)]
    least, most = each.trained
    return [
        *first, seeds, interval(each.gain.interval, "{:.2f}"), percent(share), f"{100 * least:.0f}–{most:.0%}",
        of_pair(key, differences.get(key), key in held),
    ]  # fmt: skip


def on_unseen(each: Cell, ours: Cell | None) -> str:
    """The gain on openings that nobody trains on, at the same KL there, and PPO's less it."""
    if each.gain is None:
        return "not reached"
    less = None if ours is None else compared(ours, each)
    return f"{each.gain.mean:.2f}" + (f"; {interval(less.difference.interval, '{:+.2f}')}" if less else "")


def of_best(results: Results, key: Key, differences: Mapping[Key, Compared | None], held: set[Key]) -> list[str]:
    """The row of the best of n."""
    kl, rows = key[1], results.rows["limit"]["best_of_n"]
    gain = gain_at(results.best_of_n(), kl)
    if gain is None:
        why = f"not reached: the largest n, {rows[-1]['n']}, has a KL of {rows[-1]['kl']:.2f}"
        return [f"{BEST_OF_N} from the base", "–", "–", why, *["–"] * 2, of_pair(key, None)]
    below = max((row for row in rows if row["kl"] <= kl), key=lambda row: row["kl"])
    above = min((row for row in rows if row["kl"] >= kl), key=lambda row: row["kl"])
    limit = limit_at(results, kl)
    part = gain.value / limit.value
    share = Estimate(part, part * ((gain.error / gain.value) ** 2 + (limit.error / limit.value) ** 2) ** 0.5, INFINITE)
    return [
        f"{BEST_OF_N} from the base",
        f"n {below['n']}" if below is above else f"n {below['n']} and {above['n']}",
        "–",
        interval(Estimate(gain.value, gain.error, INFINITE).interval, "{:.2f}"),
        percent(share),
        "–",
        of_pair(key, differences.get(key), key in held),
    ]


INFINITE = float("inf")
"""Degrees of freedom of a mean over hundreds of prompts."""


def of_pair(key: Key, found: Compared | None, held: bool = False) -> str:
    """PPO's gain less another's, with the number of pairs of seeds, or of PPO's seeds beside the best of n."""
    if key[2] == OURS:
        return "–"
    if found is None:
        return "not compared"
    return f"{less(found, 'seeds' if key[2] == BEST_OF_N else 'pairs')}: {verdict(found.difference, held)}"


def of_variants(cells: Cells, kl: float) -> list[str]:
    """What variants of PPO gain more than those that they are compared with, as lines of the page."""
    told = []
    for variant, others in plan.COMPARED.items():
        made = {name: compared(cells[variant][kl], cells[name][kl]) for name in others if {name, variant} <= set(cells)}
        said = "; ".join(f"*{NAMES[name]}*: {less(found)}" for name, found in made.items() if found is not None)
        if said:
            told += [f"*{NAMES[variant]}* less others, each interval alone: {said}.", ""]
    return told


def less(found: Compared, counted: str = "pairs") -> str:
    """A difference in gain, with the number of what it was found by."""
    return f"{interval(found.difference.interval, '{:+.2f}')}, {found.pairs} {counted}"


def percent(share: Estimate) -> str:
    estimate, low, high = share.interval
    return f"{estimate:.0%} ({low:.0%}–{high:.0%})"


def interval(found: Interval, form: str) -> str:
    estimate, low, high = (form.format(value) for value in found)
    return f"{estimate} ({low} to {high})"
