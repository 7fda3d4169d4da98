"""The plots of a report, as SVG that takes the page's colours and as PNG.

A figure is drawn once, in the colours of the light theme. In the SVG each of them becomes a CSS variable, so that the
same drawing is readable on dark ground and on paper.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.report.rundata import Point, RunData, StageData, reward_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#20242c", "#dfe2e8"
SERIES = ("#2a5db0", "#c4571b", "#1f7a5c", "#7a4fb0", "#a8324a", "#5b6472")
_VARIABLES = {INK: "var(--ink)", GRID: "var(--line)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES, start=1)}

MOST_POINTS = 300
_BINS = 24
_SIZE = (5.4, 2.9)
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefopt",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """One drawing.

    Attributes:
        name: Of the PNG file, without suffix; unique in the report.
        title: One line above it.
        caption: How to read it, for someone who sees such a plot for the first time.
        svg: The drawing as an inline element.
        png: The same as a file.
    """

    name: str
    stage: str
    title: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class _Curves:
    """A plot of metrics over steps: (metric, legend) pairs; drawn where at least one of them was logged."""

    name: str
    title: str
    caption: str
    y_label: str
    metrics: tuple[tuple[str, str], ...]
    reference: float | None = None


_CURVES = (
    _Curves(
        "loss",
        "Loss",
        "Both should fall and level off. Held-out loss that rises while training loss falls is overfitting.",
        "loss",
        (("train/loss", "training"), ("eval/loss", "held out")),
    ),
    _Curves(
        "accuracy",
        "Preference accuracy",
        "Share of pairs where the policy's implicit reward ranks the chosen answer first; 0.5 is guessing.",
        "share of pairs",
        (("dpo/accuracy", "training"), ("eval/dpo/accuracy", "held out")),
        0.5,
    ),
    _Curves(
        "reward-accuracy",
        "Accuracy of the reward model",
        "Share of pairs where the preferred answer has the higher score; 0.5 is guessing. A gap between training and "
        "held-out pairs is learning by heart.",
        "share of pairs",
        (("reward/accuracy", "training"), ("eval/reward/accuracy", "held out")),
        0.5,
    ),
    _Curves(
        "reward-scores",
        "Scores",
        "Only their difference means something; it should grow and level off.",
        "score",
        (("reward/chosen_score", "chosen"), ("reward/rejected_score", "rejected")),
    ),
    _Curves(
        "score",
        "Reward of the rollouts",
        "What the reward says of the policy's samples, before it is scaled. Rising is the aim; whether people would "
        "agree, it does not know.",
        "reward",
        (("ppo/score", "score"),),
    ),
    _Curves(
        "kl",
        "Distance from the reference",
        "The price of the reward. A few nats are usual; growth without end is over-optimisation.",
        "nats per answer",
        (("ppo/kl", "KL"),),
        0.0,
    ),
    _Curves(
        "entropy",
        "Entropy",
        "How undecided the policy is about the next token. Near 0 it answers every prompt in one way only.",
        "nats per token",
        (("ppo/entropy", "entropy"),),
    ),
    _Curves(
        "length",
        "Length of the answers",
        "A jump means that the reward can be had by writing more, or less.",
        "tokens",
        (("ppo/length", "length"),),
    ),
    _Curves(
        "update",
        "Size of the updates",
        "Share of tokens whose ratio or value was clipped; above 0.2 the updates are too large for their rollout.",
        "share of tokens",
        (("ppo/clip_fraction", "ratio clipped"), ("ppo/value_clip_fraction", "value clipped")),
    ),
    _Curves(
        "value",
        "What the value foresees",
        "Share of the returns' variance that is explained; 1 is all, 0 nothing. PPO works at 0, and slower.",
        "explained variance",
        (("ppo/explained_variance", "explained variance"),),
        0.0,
    ),
    _Curves(
        "margin",
        "Reward margin",
        "Implicit reward of the chosen answer minus that of the rejected one; it starts at 0 and should grow.",
        "nats × beta",
        (("dpo/margin", "training"), ("eval/dpo/margin", "held out")),
        0.0,
    ),
    _Curves(
        "rewards",
        "Implicit rewards",
        "The chosen line must stay above the rejected one. Both far below 0 mean that the policy leaves both answers.",
        "nats × beta",
        (("dpo/chosen_reward", "chosen"), ("dpo/rejected_reward", "rejected")),
        0.0,
    ),
)


def draw(run: RunData) -> list[Plot]:
    """Every plot that the run has numbers for, in the order of its stages."""
    plots: list[Plot] = []
    for stage in run.stages:
        for curves in _CURVES:
            if curves.name == "loss" and stage.kind == "ppo":
                continue  # its parts pull in opposite directions and neither need fall
            present = [(stage.series[m], title) for m, title in curves.metrics if stage.series.get(m)]
            if any(len(points) > 1 for points, _ in present):
                plots.append(
                    _plot(len(plots), stage, curves.name, curves.title, curves.caption, _curves(curves, present))
                )
        scores = _scores(stage)
        if scores:
            caption = "How often each policy's answers get which reward; the dashed lines are the averages."
            plots.append(_plot(len(plots), stage, "reward", "Reward of the answers", caption, _distributions(scores)))
    return plots


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


def _plot(index: int, stage: StageData, name: str, title: str, caption: str, paint: Callable[[Axes], None]) -> Plot:
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()  # not what the user's matplotlibrc says: the same run gives the same bytes everywhere
        rcParams.update(_RC)
        # No pyplot: it keeps figures alive and chooses a backend by looking at the screen.
        figure = Figure(figsize=_SIZE)
        FigureCanvasAgg(figure)
        paint(figure.add_subplot())
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    return Plot(
        name=f"{stage.name}-{name}",
        stage=stage.name,
        title=title,
        caption=caption,
        svg=inline_svg(svg.getvalue(), f"plot{index}", f"{stage.name}: {title}"),
        png=png.getvalue(),
    )


def inline_svg(document: str, prefix: str, title: str) -> str:
    """An SVG document as an element of a page.

    Args:
        document: What matplotlib wrote.
        prefix: Put before every id, so that several drawings share a page.
        title: Plain text that says what is drawn, for screen readers.
    """
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", element)
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', element, count=1)
    # The page's own font; matplotlib's shorthand would also name fonts that few machines have.
    element = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return element.replace('role="img">', f'role="img"><title>{label}</title>', 1)


def _curves(curves: _Curves, present: Sequence[tuple[Sequence[Point], str]]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        if curves.reference is not None:
            axes.axhline(curves.reference, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for (points, title), colour in zip(present, SERIES, strict=False):
            thinned = thin(points)
            steps = [step for step, *_ in thinned]
            marker = "o" if len(points) <= 30 else ""
            axes.plot(
                steps, [mean for _, mean, _, _ in thinned], color=colour, label=title, marker=marker, markersize=3.5
            )
            if len(points) > len(thinned):
                low, high = [row[2] for row in thinned], [row[3] for row in thinned]
                axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(curves.y_label)
        _legend(axes)

    return paint


def _scores(stage: StageData) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for row in stage.samples:
        value = reward_of(row)
        if value is not None:
            scores.setdefault(str(row.get("policy", "")), []).append(value)
    return scores


def _distributions(scores: Mapping[str, Sequence[float]]) -> Callable[[Axes], None]:
    low = min(min(values) for values in scores.values())
    high = max(max(values) for values in scores.values())
    width = (high - low or 1.0) / _BINS
    edges = [low + i * width for i in range(_BINS + 1)]

    def paint(axes: Axes) -> None:
        for (policy, values), colour in zip(scores.items(), itertools.cycle(SERIES), strict=False):
            shares = [1.0 / len(values)] * len(values)
            axes.hist(values, bins=edges, weights=shares, color=colour, alpha=0.22, histtype="stepfilled")
            axes.hist(
                values, bins=edges, weights=shares, color=colour, histtype="step", linewidth=1.4, label=_plain(policy)
            )
            axes.axvline(sum(values) / len(values), color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlabel("reward")
        axes.set_ylabel("share of answers")
        _legend(axes)

    return paint


def _legend(axes: Any) -> None:
    figure: Figure = axes.figure
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.4, columnspacing=1.4, borderaxespad=0.2)


def _plain(name: str) -> str:
    """A name that the plot's font can draw; a leading underscore would hide it from the legend."""
    text = name.encode("ascii", "backslashreplace").decode("ascii")[:40]
    return f" {text}" if text.startswith("_") else text or "(no name)"
