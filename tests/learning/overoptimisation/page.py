"""The section "Over-optimisation" of docs/benchmarks.md and its plot: gold and proxy against the root of the KL."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefopt.report.drawing import SERIES, Sketch, plot_of
from prefopt.stats.curves import Law, fit_best_of_n_law, fit_rl_law
from prefopt.stats.intervals import Interval
from tests.benchmarks.against_trl.page import replace_marked, table
from tests.benchmarks.shell import machine
from tests.learning.frontier.estimates import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "python -m tests.learning.overoptimisation"
LABELS = (100, 500, 2000)
COLORS = dict(zip(LABELS, SERIES, strict=False))
WAYS = {"best of n": fit_best_of_n_law, "ppo": fit_rl_law}


@dataclass(frozen=True)
class Curve:
    """What one seed shows of a reward model, the start first.

    Attributes:
        distance: Root of the KL from the sft policy, in nats.
        gold: Reward that is wanted.
        proxy: Reward that is optimised.
    """

    distance: Sequence[float]
    gold: Sequence[float]
    proxy: Sequence[float]

    @property
    def gains(self) -> list[float]:
        """Of gold, over the start."""
        return [value - self.gold[0] for value in self.gold]

    @property
    def furthest(self) -> float:
        """The largest distance that was measured."""
        return max(self.distance)


class Labelled(NamedTuple):
    """What the reward models of the seeds were trained on.

    Attributes:
        pairs: Fewer than prompts: one whose two answers are the same text, or get the same gold, gives none.
        right: Share of labels that prefer the answer with the higher gold.
    """

    pairs: Sequence[int]
    right: Sequence[float]


class Top(NamedTuple):
    """Where a law's gold is highest among the distances that were measured.

    Attributes:
        gain: Of gold, over the start.
        distance: Root of the KL, in nats.
        inside: Whether gold falls again beyond it; otherwise it is where the measurements end.
    """

    gain: float
    distance: float
    inside: bool


def curves(evaluation: Path) -> dict[str, Curve]:
    """Those of an evaluate stage's artefact, by the way that the proxy is optimised in."""
    found = json.loads((evaluation / "findings.json").read_text(encoding="utf-8"))["curves"]
    drawn = found["best_of_n"]
    best = Curve(
        [math.sqrt(point["kl"]) for point in drawn],
        [point["chosen_by_proxy"]["estimate"] for point in drawn],
        [point["proxy"]["estimate"] for point in drawn],
    )
    moved = found["overoptimisation"]
    start = next(point for point in moved if point["policy"] == "sft")
    trained = sorted(
        (point for point in moved if point["policy"] != "sft"),
        key=lambda point: math.inf if point["step"] is None else point["step"],
    )
    path = [start, *trained]
    return {
        "best of n": best,
        "ppo": Curve([p["distance"] for p in path], [p["reward"] for p in path], [p["proxy"] for p in path]),
    }


def finished(run: Path, stage: str) -> list[Path]:
    """The artefact that each seed of a run has of a stage, in the order of seeds.

    Raises:
        ValueError: When a seed has none, or several.
    """
    found = []
    for folder in (run, *sorted((run / "seeds").glob("*"))):
        artefacts = [manifest.parent for manifest in folder.glob(f"stages/{stage}/*/manifest.json")]
        if len(artefacts) != 1:
            raise ValueError(f"{folder} has {len(artefacts)} finished artefacts of {stage}, and must have one")
        found += artefacts
    return found


def read(run: Path) -> dict[int, list[dict[str, Curve]]]:
    """Curves of every seed of a run, by labels.

    Raises:
        ValueError: When a stage is not finished.
    """
    return {labels: [curves(folder) for folder in finished(run, f"eval{labels}")] for labels in LABELS}


def labelled(run: Path) -> dict[int, Labelled]:
    """What reward models were trained on, by labels.

    Raises:
        ValueError: When a stage is not finished.
    """
    found = {}
    for labels in LABELS:
        trained = [manifest(folder) for folder in finished(run, f"reward{labels}")]
        collected = [manifest(folder) for folder in finished(run, f"pairs{labels}")]
        found[labels] = Labelled(
            [of_seed["details"]["data"]["kept_train"] for of_seed in trained],
            [of_seed["metrics"]["collect/label_agreement"] for of_seed in collected],
        )
    return found


def manifest(artefact: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))
    return content


def write(run: Path, docs: Path) -> None:
    """Write table and plot.

    Args:
        run: Finished.
        docs: Folder of benchmarks.md.
    """
    found = read(run)
    picture = docs / "images" / "overoptimisation.png"
    picture.write_bytes(drawn(found))
    caption = "Gold and proxy against the root of the KL"
    lines = [*rows(found, labelled(run)), "", f"![{caption}](images/{picture.name})", ""]
    lines.append(f"Machine: {machine()}; {datetime.now(UTC).date().isoformat()}.")
    replace_marked(docs / "benchmarks.md", COMMAND, "\n".join(lines))


def rows(found: dict[int, list[dict[str, Curve]]], trained_on: dict[int, Labelled]) -> list[str]:
    """The table, and what its signs mean."""
    header = ["labels", "pairs trained on", "labels that gold agrees with", "optimised by"]
    header += ["highest gold of the law, over the start", "at √KL"]
    header += ["gold in the end, over the start", "proxy in the end, over the start", "law: α", "β", "R²"]
    lines = []
    for labels, seeds in found.items():
        for way in WAYS:
            of_way = [each[way] for each in seeds]
            laws = [law(way, each) for each in of_way]
            tops = [top(way, *each) for each in zip(laws, of_way, strict=True)]
            at_end = sum(not each.inside for each in tops)
            note = f", {at_end} of {len(tops)} at the end" if at_end else ""
            lines.append(
                [
                    f"{labels:,}",
                    spanned(trained_on[labels].pairs, "{:,}"),
                    spanned(trained_on[labels].right, "{:.0%}"),
                    way,
                    told([each.gain for each in tops]),
                    told([each.distance for each in tops]) + note,
                    told([each.gains[-1] for each in of_way]),
                    told([each.proxy[-1] - each.proxy[0] for each in of_way]),
                    *(told([getattr(each, name) for each in laws]) for name in ("alpha", "beta", "r_squared")),
                ]
            )
    count = len(next(iter(found.values())))
    meaning = (
        f"±: half of Student's 95 % interval over {count} seeds. At the end: the law's gold is still highest where the "
        "measurements of that seed end."
    )
    return [*table(header, lines), "", meaning]


def law(way: str, curve: Curve) -> Law:
    """Fitted to gold."""
    return WAYS[way](curve.distance, curve.gains)


def top(way: str, fitted: Law, curve: Curve) -> Top:
    """The highest gold that a law says, up to the largest distance that was measured.

    The highest of the measured points would be too high, as it is the one with the luckiest noise, and the more so the
    more points a curve has.
    """
    if fitted.peak is not None and 0 < fitted.peak < curve.furthest:
        return Top(predicted(way, fitted, fitted.peak), fitted.peak, inside=True)
    gain = predicted(way, fitted, curve.furthest)
    return Top(gain, curve.furthest, inside=False) if gain > 0 else Top(0.0, 0.0, inside=True)


def told(values: Sequence[float]) -> str:
    """Mean and interval of the seeds."""
    found: Interval = t_interval(values)
    return f"{found.estimate:.2f} ± {found.high - found.estimate:.2f}"


def spanned(values: Sequence[float], form: str) -> str:
    """The least and the most of the seeds."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}–{high}"


def drawn(found: dict[int, list[dict[str, Curve]]]) -> bytes:
    """Gold as points with the law's line, proxy as a dashed line; a seed is a line of its own."""

    def paint(axes: Axes) -> None:
        figure: Any = axes.figure  # axes that are removed know of none
        axes.remove()
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, way in enumerate(WAYS):
            for labels, seeds in found.items():
                for number, each in enumerate(seeds):
                    curve, color = each[way], COLORS[labels]
                    label = f"{labels:,} labels" if number == 0 else None
                    panels[0][column].plot(curve.distance, curve.gains, "o", ms=2.5, color=color, alpha=0.6)
                    d = np.linspace(0.0, curve.furthest, 80)[1:]
                    panels[0][column].plot(d, predicted(way, law(way, curve), d), color=color, label=label, alpha=0.8)
                    gains = [value - curve.proxy[0] for value in curve.proxy]
                    panels[1][column].plot(curve.distance, gains, color=color, alpha=0.8)
            panels[0][column].set_title(way, fontsize=9)
            panels[1][column].set_xlabel("√KL from sft, nats")
        panels[0][0].set_ylabel("gold, over the start")
        panels[1][0].set_ylabel("proxy, over the start")
        panels[0][0].legend(fontsize=7)

    return plot_of(Sketch("overoptimisation", "gold", "Over-optimisation", "", paint, size=(7.4, 5.2)), 0).png


def predicted(way: str, law: Law, distance: Any) -> Any:
    """Gain that a law says at a distance above 0, or at several."""
    decay = distance if way == "best of n" else np.log(distance)
    return distance * (law.alpha - law.beta * decay)
