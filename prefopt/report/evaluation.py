"""The evaluation table and the sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prefopt.report.format import decimals
from prefopt.report.rundata import RunData, StageData

# What matters first, in this order.
_FIRST = (
    "win_rate",
    "gold",
    "reward",
    "best_of_n",
    "headroom",
    "preference/accuracy",
    "kl",
    "length",
    "eos_rate",
    "violation_rate",
)
# Then these, in a table of their own; what is not named here follows by name.
_AFTER = ("win_rate_length_controlled", "entropy", "repetition", "distinct/words", "distinct/pairs")
_TITLES = {
    "win_rate": "win rate",
    "gold": "gold reward",
    "best_of_n": "best of n",
    "headroom": "share of headroom",
    "preference/accuracy": "preference accuracy",
    "kl": "KL",
    "eos_rate": "ended itself",
    "violation_rate": "violations",
    "win_rate_length_controlled": "win rate at equal length",
    "repetition": "repeats itself",
    "distinct/words": "different words",
    "distinct/pairs": "different word pairs",
    "overoptimisation/alpha": "gain per √KL",
    "overoptimisation/beta": "decay of the gain",
    "overoptimisation/r_squared": "fit of its law",
}
_OF_COSTS = ("violation_rate/", "cost/")
_PARTS = ("mean", "ci_low", "ci_high")


@dataclass(frozen=True)
class Estimate:
    """A measured mean and, where it was computed, its 95 % interval."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    """One metric of the table; `decimals` is the same down the column, so that the digits line up."""

    name: str
    title: str
    decimals: int


@dataclass(frozen=True)
class Row:
    """One policy; `cells` align with the columns, None where a policy has no such number."""

    policy: str
    is_baseline: bool
    cells: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class Table:
    """Policies × metrics of one evaluate stage."""

    stage: str
    baseline: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    title: str = ""

    @property
    def parts(self) -> list[Table]:
        """The columns that matter first, and the others as a table below, each where there are any."""
        first = [i for i, column in enumerate(self.columns) if column.name in _FIRST]
        costs = [i for i, column in enumerate(self.columns) if column.name.startswith(_OF_COSTS)]
        others = [i for i in range(len(self.columns)) if i not in (*first, *costs)]
        titled = [(first, ""), (costs, "Violations and costs"), (others, "More about the answers")]
        return [self._part(places, title) for places, title in titled if places]

    def _part(self, places: Sequence[int], title: str) -> Table:
        rows = [replace(row, cells=tuple(row.cells[i] for i in places)) for row in self.rows]
        shown = tuple(row for row in rows if any(cell is not None for cell in row.cells))
        return replace(self, columns=tuple(self.columns[i] for i in places), rows=shown, title=title)


def baseline_of(stage: StageData) -> str:
    """The policy that others are compared with; empty where nobody says."""
    named = stage.details.get("baseline") or stage.options.get("baseline")
    if named:
        return str(named)
    policies = stage.options.get("policies")
    if isinstance(policies, str):
        return policies
    return str(policies[0]) if isinstance(policies, Sequence) and policies else ""


def estimates(metrics: Mapping[str, float]) -> dict[str, dict[str, Estimate]]:
    """`POLICY:metric/mean`, `/ci_low` and `/ci_high` gathered, by policy and metric."""
    parts: dict[str, dict[str, dict[str, float]]] = {}
    for name, value in metrics.items():
        policy, colon, metric = name.rpartition(":")
        if not colon:
            continue
        base, _, part = metric.rpartition("/")
        if part not in _PARTS:
            base, part = metric, "mean"
        parts.setdefault(policy, {}).setdefault(base, {})[part] = value
    return {
        policy: {
            name: Estimate(found["mean"], found.get("ci_low"), found.get("ci_high"))
            for name, found in values.items()
            if "mean" in found
        }
        for policy, values in parts.items()
    }


def table_of(stage: StageData) -> Table | None:
    """The table of an evaluate stage; None where it measured no policy."""
    found = estimates(stage.metrics)
    if not found:
        return None
    baseline = baseline_of(stage)
    names = sorted({name for values in found.values() for name in values}, key=_column_order)
    columns = tuple(
        Column(name, _title(name), decimals(v[name].mean for v in found.values() if name in v)) for name in names
    )
    rows = tuple(
        Row(policy, policy == baseline, tuple(values.get(name) for name in names))
        for policy, values in sorted(found.items(), key=lambda item: item[0] != baseline)
    )
    return Table(stage.name, baseline, columns, rows)


def _title(name: str) -> str:
    group, _, cost = name.partition("/")
    if name.startswith(_OF_COSTS):
        return f"{cost}: {'violations' if group == 'violation_rate' else 'cost'}"
    return _TITLES.get(name, name.replace("_", " "))


def _column_order(name: str) -> tuple[int, str]:
    order = (*_FIRST, *_AFTER)
    return (order.index(name) if name in order else len(order), name)


@dataclass(frozen=True)
class Verdict:
    """What the run shows, in one sentence; `tone` is `good`, `bad` or `open`."""

    text: str
    tone: str


def verdicts(run: RunData) -> list[Verdict]:
    """What leads the page: every gate that says no, then the comparison of the policies."""
    refused = []
    for stage in run.stages:
        failed = [line for line in stage.gates if line.holds is False]
        if failed:
            said = "; ".join(f"{line.metric} is {line.shown}, and {line.bound}" for line in failed)
            refused.append(Verdict(f"Gate of {stage.name} says no: {said}", "bad"))
    return [*refused, _comparison(run)]


def verdict(run: RunData) -> Verdict:
    """The first of them."""
    return verdicts(run)[0]


def _comparison(run: RunData) -> Verdict:
    """One sentence from the last evaluation that compares policies, honest about what is not shown."""
    for stage in reversed(run.evaluations):
        found = estimates(stage.metrics)
        baseline = baseline_of(stage)
        for metric, say in (("win_rate", _by_win_rate), ("preference/accuracy", _by_preference)):
            compared = {p: v[metric] for p, v in found.items() if p != baseline and metric in v}
            if compared:
                parts = [say(policy, baseline, estimate) for policy, estimate in compared.items()]
                return Verdict("; ".join(text for text, _ in parts), _tone([tone for _, tone in parts]))
    done = sum(stage.state == "done" for stage in run.stages)
    if done < len(run.stages):
        return Verdict(f"Not evaluated yet: {done} of {len(run.stages)} stages are done", "open")
    return Verdict("Not evaluated: no stage compares policies", "open")


def _tone(tones: Sequence[str]) -> str:
    # Several policies with different outcomes have no common colour.
    return tones[0] if len(set(tones)) == 1 else "open"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.2f}, no interval"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _by_win_rate(policy: str, baseline: str, estimate: Estimate) -> tuple[str, str]:
    against = baseline or "the baseline"
    shown = f"win rate {_interval(estimate)}"
    if estimate.low is not None and estimate.low > 0.5:
        return f"{policy} beats {against}: {shown}", "good"
    if estimate.high is not None and estimate.high < 0.5:
        return f"{policy} loses to {against}: {shown}", "bad"
    return f"No difference shown between {policy} and {against}: {shown}", "open"


def _by_preference(policy: str, baseline: str, estimate: Estimate) -> tuple[str, str]:
    shown = f"preference accuracy {_interval(estimate)}"
    if estimate.low is not None and estimate.low > 0.5:
        return f"{policy} ranks held-out pairs better than chance: {shown}", "good"
    if estimate.high is not None and estimate.high < 0.5:
        return f"{policy} ranks held-out pairs worse than chance: {shown}", "bad"
    return f"No preference shown: {policy} ranks held-out pairs no better than chance, {shown}", "open"
