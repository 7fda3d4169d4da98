"""Reward against violations: a plot per cost, with every policy named, whatever its numbers are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from prefopt.report import render
from prefopt.report.drawing import INK, Sketch, plot_of
from prefopt.report.rundata import StageData
from prefopt.report.tradeoff_plots import tradeoff_sketches
from prefopt.stats.intervals import wilson
from prefopt.store.manifest import Manifest
from tests.run_folder import FULL, RunFolder
from tests.unit.report.test_render import Page

PROMPTS = 200


def stage_of(policies: Mapping[str, tuple[float, float]], score: str = "gold", cost: str = "banned") -> StageData:
    """An evaluation from (violation rate, reward) by policy; the first is the baseline."""
    metrics: dict[str, float] = {}
    for policy, (rate, reward) in policies.items():
        interval = wilson(rate * PROMPTS, PROMPTS)
        for name, parts in (
            (f"violation_rate/{cost}", (interval.estimate, interval.low, interval.high)),
            (score, (reward, reward - 0.1, reward + 0.1)),
        ):
            metrics |= {
                f"{policy}:{name}/{part}": v for part, v in zip(("mean", "ci_low", "ci_high"), parts, strict=True)
            }
    return with_metrics(metrics, next(iter(policies), "sft"))


def with_metrics(metrics: dict[str, float], baseline: str = "sft") -> StageData:
    manifest = Manifest("eval", "evaluate", "0" * 64, 1, metrics=metrics, details={"baseline": baseline})
    return StageData("eval", "evaluate", "done", manifest=manifest)


def axes_of(sketch: Sketch) -> Axes:
    figure = Figure(figsize=sketch.size)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sketch.paint(axes)
    return axes


def marks_of(axes: Axes) -> list[ErrorbarContainer]:
    return [each for each in axes.containers if isinstance(each, ErrorbarContainer)]


def test_every_policy_is_a_mark_with_its_intervals_and_the_baseline_is_before() -> None:
    (sketch,) = tradeoff_sketches(stage_of({"sft": (0.3, 0.4), "free": (0.43, 1.2), "priced": (0.02, 1.3)}))
    assert (sketch.name, sketch.title, sketch.evidence) == (
        "tradeoff-banned", "Reward against violations: banned", True,
    )  # fmt: skip
    axes = axes_of(sketch)
    names = [text.get_text() for text in axes.texts if text.get_text()]
    assert names == ["before: sft", "free", "priced"]
    assert axes.get_ylabel() == "gold reward"
    marks = marks_of(axes)
    assert [tuple(map(float, mark.lines[0].get_xydata()[0])) for mark in marks] == [
        (0.3, 0.4),
        (0.43, 1.2),
        (0.02, 1.3),
    ]
    across = marks[2].lines[2][0].get_segments()[0]
    interval = wilson(0.02 * PROMPTS, PROMPTS)
    assert across[0][0] == pytest.approx(interval.low) and across[1][0] == pytest.approx(interval.high)
    assert [mark.lines[0].get_color() == INK for mark in marks] == [True, False, False]
    # The other texts are the arrows: one from the baseline to each policy.
    arrows = [text for text in axes.texts if not text.get_text()]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [((0.3, 0.4), (0.43, 1.2)), ((0.3, 0.4), (0.02, 1.3))]


def test_the_numbers_are_said_to_who_cannot_see_them() -> None:
    (sketch,) = tradeoff_sketches(stage_of({"sft": (0.5, 0.4), "<b>": (0.0, 1.2)}, score="reward"))
    assert sketch.description == (
        "Before, sft: 50.0% [43.1%, 56.9%] violate, reward 0.40 [0.30, 0.50]. "
        "<b>: 0.0% [0.0%, 1.9%] violate, reward 1.20 [1.10, 1.30]."
    )
    svg = plot_of(sketch, 0).svg
    assert "<desc>Before, sft: 50.0%" in svg and "&lt;b&gt;: 0.0%" in svg and "<b>" not in svg


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_marks_at_the_ends_are_whole(rate: float) -> None:
    (sketch,) = tradeoff_sketches(stage_of({"sft": (rate, 0.4), "dpo": (rate, 0.4), "ppo": (rate, 0.9)}))
    axes = axes_of(sketch)
    low, high = axes.get_xlim()
    assert low < 0 and high > rate and (rate == 0 or high < 1.1)
    shown = [text for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert shown and all(text.get_text().endswith(" %") and "-" not in text.get_text() for text in shown)


def test_many_policies_at_one_place_are_all_named() -> None:
    policies = {"sft": (0.3, 0.4)} | {f"a-long-name-of-a-policy-{n}": (0.02, 1.2 + n / 1000) for n in range(12)}
    (sketch,) = tradeoff_sketches(stage_of(policies))
    axes = axes_of(sketch)
    axes.figure.draw_without_rendering()
    assert len({text.get_text() for text in axes.texts}) == 13 + 1  # the arrows have none
    # Of the text alone: an annotation's own extent has its line in it.
    boxes = [Text.get_window_extent(text) for text in axes.texts if text.get_text()]
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])


def test_policies_that_are_the_same_have_no_arrow() -> None:
    (sketch,) = tradeoff_sketches(stage_of({"sft": (0.3, 0.4), "same": (0.3, 0.4)}))
    assert [text.get_text() for text in axes_of(sketch).texts] == ["before: sft", "same"]


def test_every_cost_has_a_plot_and_gold_comes_before_another_reward() -> None:
    policies = {"sft": (0.3, 0.4), "ppo": (0.1, 0.9)}
    metrics = stage_of(policies).metrics | stage_of(policies, "reward", "length").metrics
    sketches = list(tradeoff_sketches(with_metrics(metrics)))
    assert [sketch.name for sketch in sketches] == ["tradeoff-banned", "tradeoff-length"]
    assert {axes_of(sketch).get_ylabel() for sketch in sketches} == {"gold reward"}


@pytest.mark.parametrize(
    "stage",
    [
        with_metrics({}),
        stage_of({"sft": (0.3, 0.4)}),
        stage_of({"sft": (0.3, 0.4), "ppo": (0.1, 0.9)}, score="length"),
        with_metrics(
            {f"{policy}:{name}/mean": 0.5 for policy in ("sft", "ppo") for name in ("gold", "violation_rate")}
        ),
        stage_of({"sft": (0.3, 0.4), "ppo": (0.1, 0.9)}, cost="../../outside"),
    ],
    ids=["nothing", "one policy", "no reward", "no costs", "a name that no cost has"],
)
def test_nothing_is_drawn_without_costs_or_a_reward_to_compare(stage: StageData) -> None:
    assert list(tradeoff_sketches(stage)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 1.5, 1e40])
def test_a_policy_with_a_damaged_rate_is_left_out(value: float) -> None:
    metrics = stage_of({"sft": (0.3, 0.4), "dpo": (0.2, 0.5), "ppo": (0.1, 0.9)}).metrics
    (sketch,) = tradeoff_sketches(with_metrics(metrics | {"dpo:violation_rate/banned/ci_high": value}))
    assert "dpo" not in sketch.description and len(marks_of(axes_of(sketch))) == 2
    assert list(tradeoff_sketches(with_metrics(metrics | {f"{p}:gold/mean": math.nan for p in ("sft", "ppo")}))) == []


def test_numbers_without_intervals_are_marks_without_bars() -> None:
    metrics = {
        name: v for name, v in stage_of({"sft": (0.3, 0.4), "ppo": (0, 0.9)}).metrics.items() if "/ci" not in name
    }
    (sketch,) = tradeoff_sketches(with_metrics(metrics))
    assert "30.0% violate, gold reward 0.40." in sketch.description
    assert all(mark.lines[2] == () for mark in marks_of(axes_of(sketch)))


def test_the_page_shows_it_with_the_evidence_and_as_png(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", recipe=FULL)
    page = Page(render(folder.full()).read_text(encoding="utf-8"))
    evidence = page.text[page.text.index("Evidence", page.text.index("Violations and costs")) :]
    assert "Reward against violations: banned" in evidence[: evidence.index("Stages")]
    assert "before: sft" in page.text and "banned: violations" in page.text
    assert (folder.run.root / "report" / "plots" / "eval-tradeoff-banned.png").stat().st_size > 5000
    manifest = json.loads((folder.folder("eval") / "manifest.json").read_text())
    assert manifest["metrics"]["dpo:violation_rate/banned/mean"] == 0.05
