"""Gates: what a stage's metrics must be for the run to go on, and what to look at when they are not.

A gate is judged on the finished artefact, whenever the run comes by: changing a bound trains nothing anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import GateRefused, InputError, RecipeError
from prefopt.recipe.load import LoadedRecipe
from prefopt.recipe.scorers import RequireSpec
from prefopt.tracking.metrics import METRICS, describe

# Metric, or what it begins with → what usually is wrong; the longest that fits is told.
_LOOK_AT = {
    "eval/loss": "whether train/loss still falls (more steps), or eval/loss rises while it does (fewer epochs)",
    "reward/accuracy": "reward/accuracy on training pairs: near 0.5 means too little training or labels that "
    "contradict each other (docs/algorithms/reward.md); high there and low here means too few pairs",
    "calibration": "the reliability plot: a temperature above 1 means overconfidence, which fewer epochs cure",
    "bias/over_length": "whether the reward model measures anything but length: read pairs where the shorter answer "
    "was chosen, and balance the data by length",
    "bias/over_words": "whether the reward model knows more than words: it should beat a bag of words",
    "bias": "the probe answers in the stage's table",
    "robustness": "the perturbation with the highest flip rate in the stage's table",
    "violation_rate": "the stage's samples with violations; label them as rejected, or penalise them",
    "preference/accuracy": "the learning rate and beta, and whether the pairs' labels agree with each other",
    "win_rate": "the curves of the stage that trained the policy: no change in KL means too little training, a large "
    "KL too much",
    "gold": "the curves of the stage that trained the policy",
    "headroom": "the reward model's accuracy first: a policy is no better than what it is trained on",
    "kl": "the learning rate, and kl.coefficient or beta: the policy went too far from its reference",
    "length": "the length of chosen against rejected answers in the data",
    "eos_rate": "missing_eos_penalty, and whether the data's completions end",
    "collect/tie_rate": "the judge, and the temperature: answers that are all alike give no pairs",
    "collect/label_agreement": "the judge's noise",
}


def check_names(loaded: LoadedRecipe) -> None:
    """Refuse gates on metrics that do not exist, before anything runs.

    Raises:
        RecipeError: Naming every such gate, with the nearest name that exists.
    """
    unknown = []
    for stage, spec in loaded.written.stages.items():
        for name in spec.require:
            try:
                describe(name)
            except KeyError:
                near = _nearest(name)
                remedy = f"did you mean '{near}'?" if near else "prefopt/tracking/metrics.py lists them"
                path = ("stages", stage, "require", name)
                unknown.append(loaded.places.problem(path, f"there is no metric '{name}'", remedy))
    if unknown:
        raise RecipeError(unknown)


def _nearest(name: str) -> str | None:
    """The name that is most like one, with the policy and the `eval/` that stand before it."""
    bare = name.rpartition(":")[2]
    known = {*METRICS, *(f"eval/{metric}" for metric in METRICS if not metric.startswith("eval/"))}
    near = difflib.get_close_matches(bare, sorted(known), n=1)
    return name.removesuffix(bare) + near[0] if near else None


class Judgement(NamedTuple):
    """One bound of a gate.

    Attributes:
        metric: What it is about.
        shown: The metric's value, with its interval where it has one.
        bound: What the value must be, in words.
        holds: Whether it is.
    """

    metric: str
    shown: str
    bound: str
    holds: bool


def judgements(stage: str, gates: Mapping[str, RequireSpec], metrics: Mapping[str, float]) -> list[Judgement]:
    """Every bound of a finished stage's gates.

    Args:
        stage: Its name.
        gates: Bounds by metric.
        metrics: What the stage measured.

    Raises:
        InputError: When the stage did not measure what a gate is about.
    """
    return [judged for name, bounds in gates.items() for judged in _judged(stage, name, bounds, metrics)]


def require(stage: str, gates: Mapping[str, RequireSpec], metrics: Mapping[str, float], directory: Path) -> None:
    """Refuse a finished stage whose gates do not hold.

    Args:
        stage: Its name.
        gates: Bounds by metric.
        metrics: What the stage measured.
        directory: Its artefact.

    Raises:
        GateRefused: Naming every value that is out of bounds, its bound, and what to look at.
        InputError: When the stage did not measure what a gate is about.
    """
    failed = [judged for judged in judgements(stage, gates, metrics) if not judged.holds]
    if failed:
        lines = "; ".join(f"{judged.metric} is {judged.shown}, and {judged.bound}" for judged in failed)
        hints = dict.fromkeys(hint for judged in failed if (hint := _hint(judged.metric)))
        where = f"its numbers and samples are in {directory}"
        raise GateRefused(f"stage {stage} is done, and its gate says no: {lines}", "; ".join([*hints, where]))


def _judged(stage: str, name: str, bounds: RequireSpec, metrics: Mapping[str, float]) -> Iterator[Judgement]:
    interval = f"{name}/mean" in metrics
    value = _known(stage, f"{name}/mean" if interval else name, metrics)
    shown = f"{value:.4g}"
    if interval:
        shown += f" [{metrics[f'{name}/ci_low']:.4g}, {metrics[f'{name}/ci_high']:.4g}]"
    if bounds.min is not None:
        yield Judgement(name, shown, f"must be at least {bounds.min:g}", value >= bounds.min)
    if bounds.max is not None:
        yield Judgement(name, shown, f"must be at most {bounds.max:g}", value <= bounds.max)
    if bounds.lower_bound is not None:
        low = _known(stage, f"{name}/ci_low", metrics)
        yield Judgement(name, shown, f"its interval must lie above {bounds.lower_bound:g}", low >= bounds.lower_bound)
    if bounds.upper_bound is not None:
        high = _known(stage, f"{name}/ci_high", metrics)
        yield Judgement(name, shown, f"its interval must lie below {bounds.upper_bound:g}", high <= bounds.upper_bound)


def _known(stage: str, name: str, metrics: Mapping[str, float]) -> float:
    if name in metrics:
        return metrics[name]
    whole = name.removesuffix("/ci_low").removesuffix("/ci_high")
    if whole != name and whole in metrics:
        raise InputError(f"stages.{stage}.require: '{whole}' has no interval", "use 'min' or 'max'")
    measured = sorted({known.removesuffix("/mean") for known in metrics if not known.endswith(("/ci_low", "/ci_high"))})
    near = difflib.get_close_matches(name, measured, n=1)
    remedy = f"did you mean '{near[0]}'?" if near else f"it measured {', '.join(measured) or 'nothing'}"
    raise InputError(f"stages.{stage}.require: the stage did not measure '{whole}'", remedy)


def _hint(name: str) -> str:
    bare = name.rpartition(":")[2]
    known = sorted((key for key in _LOOK_AT if bare == key or bare.startswith(f"{key}/")), key=len)
    return f"look at {_LOOK_AT[known[-1]]}" if known else ""
