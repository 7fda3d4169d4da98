"""`render`: from a run folder to `report/index.html`, one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefopt.report import format as fmt
from prefopt.report.costs import costs_of
from prefopt.report.drawing import Plot
from prefopt.report.evaluation import Table, table_of, verdicts
from prefopt.report.microscope import microscope_of
from prefopt.report.plots import draw
from prefopt.report.rundata import RunData, StageData, read_run
from prefopt.report.samples import samples_of
from prefopt.store.files import make_folder, write_atomic
from prefopt.store.run import RunDirectory
from prefopt.store.secrets import redact, without_values
from prefopt.tracking.metrics import METRICS, Metric, describe

_HEADLINES = (
    *(f"{method}/{name}" for method in ("ppo", "grpo", "rloo") for name in ("score", "kl", "entropy")),
    "distill/reward_ratio",
    "eval/distill/kl",
    "distill/drift",
    "distill/answer_agreement",
    "reward/accuracy/mean",
    "collect/pairs",
    "collect/reward",
    "collect/label_agreement",
    "eval/loss",
    "eval/dpo/accuracy",
    "eval/dpo/margin",
    "train/loss",
    "dpo/accuracy",
    "eval/kto/margin",
    "kto/margin",
    "eval/perplexity",
)
_MOST_HEADLINES = 3
_TOTALS = ("rows_read", "kept_train", "kept_eval", "dropped")
_ARROWS = {"higher": "↑ higher is better", "lower": "↓ lower is better", None: ""}


@dataclass(frozen=True)
class MetricRow:
    """A metric with its value, ready to show."""

    name: str
    value: str
    meaning: str
    unit: str
    better: str


@dataclass(frozen=True)
class Card:
    """What the page shows of a stage; `plots` by heading."""

    stage: StageData
    facts: list[tuple[str, str]]
    headlines: list[MetricRow]
    metrics: list[MetricRow]
    plots: dict[str, list[Plot]]


def render(run_dir: Path) -> Path:
    """Writes the report of a run, finished or not.

    The same folder gives the same bytes: no time is shown but those in the manifests.

    Args:
        run_dir: `runs/NAME`.

    Returns:
        `run_dir/report/index.html`; the plots are in `report/plots/` as PNG.

    Raises:
        InputError: When the folder is not one of a run.
        EnvironmentFault: When the report cannot be written.
    """
    run = read_run(run_dir)
    plots = draw(run)
    target = RunDirectory(run_dir).report
    _write_plots(target.parent / "plots", plots)
    write_atomic(target, page(run, plots).encode("utf-8", errors="replace"))
    return target


def page(run: RunData, plots: list[Plot]) -> str:
    """The report as HTML."""
    cards = [
        _card(stage, [plot for plot in plots if plot.stage == stage.name and not plot.evidence]) for stage in run.stages
    ]
    tables = [table for stage in run.stages if (table := table_of(stage)) is not None]
    context: dict[str, Any] = {
        "run": run,
        "verdicts": verdicts(run),
        "evidence": [
            (stage, shown)
            for stage in run.stages
            if (shown := [plot for plot in plots if plot.stage == stage.name and plot.evidence])
            or stage.evidence.tables
        ],
        "cost": costs_of(run),
        "tables": tables,
        "cards": cards,
        "glossary": _glossary(cards, tables),
        "data": [(stage.name, _data_rows(stage)) for stage in run.stages if _data_rows(stage)],
        "samples": [samples for stage in run.stages if (samples := samples_of(stage)) is not None],
        "microscopes": [
            found for stage in run.stages if (found := microscope_of(stage.name, stage.close_ups)) is not None
        ],
        "recipe": fmt.segments(redact(run.recipe)),
        "environment": [(name, redact(fmt.quantity(name, value))) for name, value in fmt.flatten(run.fingerprint)],
        "warnings": [fmt.segments(redact(warning)) for warning in run.warnings],
    }
    return without_values(_environment().get_template("template.html").render(context))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prefopt.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fixed"] = fmt.fixed
    environment.filters["segments"] = fmt.segments
    environment.globals["explain"] = _explain
    # The only markup that is not the template's own: drawn here, from numbers, with its labels escaped.
    environment.filters["drawing"] = lambda plot: Markup(plot.svg)
    return environment


def _write_plots(folder: Path, plots: list[Plot]) -> None:
    make_folder(folder)
    for plot in plots:
        write_atomic(folder / f"{plot.name}.png", plot.png)
    current = {f"{plot.name}.png" for plot in plots}
    for old in folder.glob("*.png"):
        if old.name not in current:
            old.unlink()  # a plot of a stage that is no longer there would pass for one of this report


def _card(stage: StageData, plots: list[Plot]) -> Card:
    facts: list[tuple[str, str]] = []
    if stage.manifest is not None:
        facts = [("finished", _moment(stage.manifest.created)), ("seed", str(stage.manifest.seed))]
        facts += [(fmt.label(n), fmt.quantity(n, v)) for n, v in sorted(stage.manifest.cost.items())]
        facts += [("built on", ", ".join(stage.manifest.inputs))] if stage.manifest.inputs else []
    groups: dict[str, list[Plot]] = {}
    for plot in plots:
        groups.setdefault(plot.group, []).append(plot)
    # Numbers of policies are in the evaluation table.
    own = {name: value for name, value in stage.metrics.items() if ":" not in name}
    headlines = [name for name in _HEADLINES if name in own][:_MOST_HEADLINES]
    return Card(
        stage=stage,
        facts=facts,
        headlines=[_metric_row(name, own[name]) for name in headlines],
        metrics=[_metric_row(name, own[name]) for name in sorted(own)],
        plots=groups,
    )


def _explain(name: str) -> Metric:
    try:
        return describe(name)
    except KeyError:
        return Metric(name, "Logged by this stage; prefopt has no explanation for it.")


def _metric_row(name: str, value: float) -> MetricRow:
    metric = _explain(name)
    return MetricRow(name, fmt.number(value), metric.meaning, metric.unit, _ARROWS[metric.better])


def _glossary(cards: Iterable[Card], tables: Iterable[Table]) -> list[MetricRow]:
    names = {row.name for card in cards for row in card.metrics}
    names |= {column.name for table in tables for column in table.columns}
    names = {_without_ends(name) for name in names}
    return [MetricRow(m.name, "", m.meaning, m.unit, _ARROWS[m.better]) for m in map(_explain, sorted(names))]


def _without_ends(name: str) -> str:
    """`kl` of `dpo:kl/ci_low`: one explanation serves all policies and both ends of an interval."""
    bare = name.rpartition(":")[2]
    estimate, _, part = bare.rpartition("/")
    return estimate if part in ("mean", "ci_low", "ci_high") and estimate in METRICS else bare


def _moment(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC")


def _data_rows(stage: StageData) -> list[tuple[str, str]]:
    """(label, value) for what a stage read, dropped and trimmed; totals first."""
    rows: list[tuple[str, str]] = []
    for part in ("data", "encoding"):
        found = stage.details.get(part)
        if isinstance(found, dict):
            ordered = {name: found[name] for name in (*_TOTALS, *found) if name in found}
            rows += [(name, fmt.quantity(name, value)) for name, value in fmt.flatten(ordered)]
    return rows
