"""The section "Over-optimisation" of docs/benchmarks.md and its plot: gold and proxy against the root of the KL."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    def peak(self) -> int:
        """Where gold is highest."""
        return max(range(len(self.gold)), key=self.gold.__getitem__)


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


def read(run: Path) -> dict[int, list[dict[str, Curve]]]:
    """Curves of every seed of a run, by labels.

    Raises:
        ValueError: When a stage is not finished.
    """
    found: dict[int, list[dict[str, Curve]]] = {}
    for labels in LABELS:
        for folder in (run, *sorted((run / "seeds").glob("*"))):
            artefacts = list(folder.glob(f"stages/eval{labels}/*/findings.json"))
            if len(artefacts) != 1:
                raise ValueError(f"{folder} has {len(artefacts)} finished artefacts of eval{labels}, and must have one")
            found.setdefault(labels, []).append(curves(artefacts[0].parent))
    return found


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
    told = [*rows(found), "", f"![{caption}](images/{picture.name})", ""]
    told.append(f"Machine: {machine()}; {datetime.now(UTC).date().isoformat()}.")
    replace_marked(docs / "benchmarks.md", COMMAND, "\n".join(told))


def rows(found: dict[int, list[dict[str, Curve]]]) -> list[str]:
    header = ["labels", "optimised by", "highest gold, over the start", "at √KL", "gold in the end, over the start"]
    header += ["proxy in the end, over the start", "law: α", "β", "R²"]
    lines = []
    for labels, seeds in found.items():
        for way in WAYS:
            of_way = [each[way] for each in seeds]
            laws = [law(way, each) for each in of_way]
            lines.append(
                [
                    f"{labels:,}",
                    way,
                    told([each.gains[each.peak] for each in of_way]),
                    told([each.distance[each.peak] for each in of_way]),
                    told([each.gains[-1] for each in of_way]),
                    told([each.proxy[-1] - each.proxy[0] for each in of_way]),
                    *(told([getattr(each, name) for each in laws]) for name in ("alpha", "beta", "r_squared")),
                ]
            )
    return table(header, lines)


def law(way: str, curve: Curve) -> Law:
    """Fitted to gold."""
    return WAYS[way](curve.distance, curve.gains)


def told(values: Sequence[float]) -> str:
    """Mean and interval of the seeds."""
    found: Interval = t_interval(values)
    return f"{found.estimate:.2f} ± {found.high - found.estimate:.2f}"


def drawn(found: dict[int, list[dict[str, Curve]]]) -> bytes:
    """Gold as points with the law's line, proxy as a dashed line; a seed is a line of its own."""

    def paint(axes: Axes) -> None:
        axes.remove()
        figure: Any = axes.figure
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, way in enumerate(WAYS):
            for labels, seeds in found.items():
                for number, each in enumerate(seeds):
                    curve, color = each[way], COLORS[labels]
                    label = f"{labels:,} labels" if number == 0 else None
                    panels[0][column].plot(curve.distance, curve.gains, "o", ms=2.5, color=color, alpha=0.6)
                    d = np.linspace(0.0, max(curve.distance), 80)[1:]
                    panels[0][column].plot(d, predicted(way, law(way, curve), d), color=color, label=label, alpha=0.8)
                    gains = [value - curve.proxy[0] for value in curve.proxy]
                    panels[1][column].plot(curve.distance, gains, color=color, alpha=0.8)
            panels[0][column].set_title(way, fontsize=9)
            panels[1][column].set_xlabel("√KL from sft, nats")
        panels[0][0].set_ylabel("gold, over the start")
        panels[1][0].set_ylabel("proxy, over the start")
        panels[0][0].legend(fontsize=7)

    return plot_of(Sketch("overoptimisation", "gold", "Over-optimisation", "", paint, size=(7.4, 5.2)), 0).png


def predicted(way: str, law: Law, distance: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Gain that a law says at distances above 0."""
    decay = distance if way == "best of n" else np.log(distance)
    return distance * (law.alpha - law.beta * decay)
