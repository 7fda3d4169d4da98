"""The plots of a report: what each stage logged over its steps, and the rewards of its answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.report.drawing import INK, SERIES, Plot, Sketch, legend, plain, plot_of
from prefopt.report.evidence_plots import evidence_sketches
from prefopt.report.rundata import Point, RunData, StageData, reward_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 300
_BINS = 24


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
    sketches = [sketch for stage in run.stages for sketch in _sketches(stage)]
    return [plot_of(sketch, index) for index, sketch in enumerate(sketches)]


def _sketches(stage: StageData) -> Iterator[Sketch]:
    for curves in _CURVES:
        if curves.name == "loss" and stage.kind == "ppo":
            continue  # its parts pull in opposite directions and neither need fall
        present = [(stage.series[m], title) for m, title in curves.metrics if stage.series.get(m)]
        if any(len(points) > 1 for points, _ in present):
            yield Sketch(curves.name, stage.name, curves.title, curves.caption, _curves(curves, present))
    scores = _scores(stage)
    if scores:
        caption = "How often each policy's answers get which reward; the dashed lines are the averages."
        yield Sketch("reward", stage.name, "Reward of the answers", caption, _distributions(scores))
    yield from evidence_sketches(stage)


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
        legend(axes)

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
                values, bins=edges, weights=shares, color=colour, histtype="step", linewidth=1.4, label=plain(policy)
            )
            axes.axvline(sum(values) / len(values), color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlabel("reward")
        axes.set_ylabel("share of answers")
        legend(axes)

    return paint
