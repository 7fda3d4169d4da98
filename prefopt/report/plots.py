"""The plots of a report: what each stage logged over its steps, and the rewards of its answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prefopt.report.curves import Curves, sketch_of
from prefopt.report.distill_plots import DISTILL_CURVES
from prefopt.report.drawing import SERIES, Plot, Sketch, legend, plain, plot_of
from prefopt.report.evidence_plots import evidence_sketches
from prefopt.report.penalty_plots import penalty_curves
from prefopt.report.ppo_plots import GROUP_OF_ANSWERS, online_curves
from prefopt.report.rundata import RunData, StageData, reward_of
from prefopt.report.tradeoff_plots import tradeoff_sketches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 24

_CURVES = (
    Curves(
        "loss",
        "Loss",
        "Both should fall and level off. Held-out loss that rises while training loss falls is overfitting.",
        "loss",
        (("train/loss", "training"), ("eval/loss", "held out")),
    ),
    Curves(
        "accuracy",
        "Preference accuracy",
        "Share of pairs where the policy's implicit reward ranks the chosen answer first; 0.5 is guessing.",
        "share of pairs",
        (("dpo/accuracy", "training"), ("eval/dpo/accuracy", "held out")),
        0.5,
    ),
    Curves(
        "reward-accuracy",
        "Accuracy of the reward model",
        "Share of pairs where the preferred answer has the higher score; 0.5 is guessing. A gap between training and "
        "held-out pairs is learning by heart.",
        "share of pairs",
        (("reward/accuracy", "training"), ("eval/reward/accuracy", "held out")),
        0.5,
    ),
    Curves(
        "reward-scores",
        "Scores",
        "Only their difference means something; it should grow and level off.",
        "score",
        (("reward/chosen_score", "chosen"), ("reward/rejected_score", "rejected")),
    ),
    Curves(
        "margin",
        "Reward margin",
        "Implicit reward of the chosen answer minus that of the rejected one; it starts at 0 and should grow.",
        "nats × beta",
        (("dpo/margin", "training"), ("eval/dpo/margin", "held out")),
        0.0,
    ),
    Curves(
        "rewards",
        "Implicit rewards",
        "The chosen line must stay above the rejected one. Both far below 0 mean that the policy leaves both answers.",
        "nats × beta",
        (("dpo/chosen_reward", "chosen"), ("dpo/rejected_reward", "rejected")),
        0.0,
    ),
    Curves(
        "kto-rewards",
        "Implicit rewards",
        "Good completions should become likelier than under the reference, and bad ones less likely.",
        "nats × beta",
        (("kto/desirable_reward", "good"), ("kto/undesirable_reward", "bad"), ("eval/kto/margin", "margin, held out")),
        0.0,
    ),
    Curves(
        "kto-kl",
        "Distance from the reference",
        "What a completion's implicit reward is compared with; at 0 it is compared with the reference alone.",
        "nats per completion",
        (("kto/kl", "estimate"),),
        0.0,
    ),
    *DISTILL_CURVES,
)


def draw(run: RunData) -> list[Plot]:
    """Every plot that the run has numbers for, in the order of its stages."""
    sketches = [sketch for stage in run.stages for sketch in _sketches(stage)]
    return [plot_of(sketch, index) for index, sketch in enumerate(sketches)]


def _sketches(stage: StageData) -> Iterator[Sketch]:
    online = online_curves(stage)
    # The parts of their losses pull in opposite directions, and neither need fall.
    for curves in (*online, *penalty_curves(stage)) if online else _CURVES:
        sketch = sketch_of(curves, stage)
        if sketch is not None:
            yield sketch
    scores = _scores(stage)
    if scores:
        caption = "How often each policy's answers get which reward; the dashed lines are the averages."
        group = GROUP_OF_ANSWERS if online else ""
        yield Sketch("reward", stage.name, "Reward of the answers", caption, _distributions(scores), group=group)
    yield from evidence_sketches(stage)
    yield from tradeoff_sketches(stage)


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
