"""The curves of ppo, grpo and rloo, with the ranges that healthy runs stay in.

Ranges are rules of thumb; where the recipe sets a limit, or a guard watches, that is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefopt.recipe.ppo import GuardsSpec
from prefopt.report.curves import Curves, Mark
from prefopt.report.damage import is_real
from prefopt.report.rundata import StageData

_EARNS, _WRITES, _LEARNS = "What it earns", "How it writes", "How it learns"
GROUP_OF_ANSWERS = _EARNS
"""Heading of the distribution of rewards, which any stage with samples has."""

_GUARDS = GuardsSpec()


def _set_value(options: Mapping[str, object], part: str, name: str, default: object = None) -> float | None:
    """A number of the recipe, such as `kl.stop_above`; None where none is set."""
    block = options.get(part)
    value = block.get(name, default) if isinstance(block, Mapping) else default
    return float(value) if isinstance(value, int | float) and is_real(value) else None


def _guard(stage: StageData, option: str, metric: str, label: str) -> list[Mark]:
    """A limit that is relative to the first value, as the guards take it."""
    limit = _set_value(stage.options, "guards", option, getattr(_GUARDS, option))
    points = stage.series.get(metric)
    return [Mark(label, limit * points[0][1])] if limit is not None and points else []


def _kl(stage: StageData) -> Sequence[Mark]:
    found = []
    for name, label in (("adaptive_target", "target"), ("stop_above", "training ends")):
        value = _set_value(stage.options, "kl", name)
        if value is not None:
            found.append(Mark(f"{label} ({value:g})", value))
    return found


def _entropy(stage: StageData) -> Sequence[Mark]:
    return _guard(stage, "min_entropy", "ppo/entropy", "guard: too certain")


def _length(stage: StageData) -> Sequence[Mark]:
    return _guard(stage, "max_length", "ppo/length", "guard: too long")


def _endings(stage: StageData) -> Sequence[Mark]:
    return (Mark("healthy from 0.9", 0.9, 1.0),)


def _repetition(stage: StageData) -> Sequence[Mark]:
    points = stage.series.get("ppo/repetition")
    return (Mark("twice the first", 2 * points[0][1]),) if points and points[0][1] > 0 else ()


def _clipping(stage: StageData) -> Sequence[Mark]:
    return (Mark("ratio: healthy 0.02–0.1", 0.02, 0.1), Mark("too much (0.2)", 0.2))


def _step(stage: StageData) -> Sequence[Mark]:
    return (Mark("healthy below 0.02", 0.0, 0.02),)


def _value(stage: StageData) -> Sequence[Mark]:
    return (Mark("better than a constant", 0.0, 1.0),)


def _gradient(stage: StageData) -> Sequence[Mark]:
    value = stage.options.get("max_grad_norm", 1.0)
    return (Mark(f"cut above {value:g}", float(value)),) if isinstance(value, int | float) and is_real(value) else ()


def _mismatch(stage: StageData) -> Sequence[Mark]:
    return (Mark("float32: below 1e-4", 1e-4),)


PPO_CURVES = (
    Curves(
        "score",
        "Reward of the rollouts",
        "What the reward says of the policy's samples, before it is scaled. Rising is the aim; whether people would "
        "agree, it does not know. Members of an ensemble that disagree more and more do not know either.",
        "reward",
        (("ppo/score", "score"), ("ppo/score_truncated", "of cut answers"), ("ppo/disagreement", "disagreement")),
        group=_EARNS,
    ),
    Curves(
        "kl",
        "Distance from the reference",
        "The price of the reward. A few nats are usual; growth without end is over-optimisation. The estimate from the "
        "sampled tokens should lie around the exact sum over the vocabulary, which is of fewer answers.",
        "nats per answer",
        (("ppo/kl", "estimate"), ("ppo/exact_kl", "exact")),
        reference=0.0,
        marks=_kl,
        group=_EARNS,
    ),
    Curves(
        "kl-coefficient",
        "Price of the distance",
        "It rises while the policy is further away than its target, and falls while it is nearer.",
        "reward per nat",
        (("ppo/kl_coefficient", "coefficient"),),
        group=_EARNS,
        only_changing=True,
    ),
    Curves(
        "entropy",
        "Entropy",
        "How undecided the policy is about the next token. Near 0 it answers every prompt in one way only.",
        "nats per token",
        (("ppo/entropy", "entropy"),),
        marks=_entropy,
        group=_WRITES,
    ),
    Curves(
        "endings",
        "Answers that end",
        "Share of the answers that ended themselves; the others were cut. It falls where the reward pays for length.",
        "share of answers",
        (("ppo/eos_rate", "ended themselves"),),
        marks=_endings,
        group=_WRITES,
    ),
    Curves(
        "length",
        "Length of the answers",
        "A jump means that the reward can be had by writing more, or less.",
        "tokens",
        (("ppo/length", "length"),),
        marks=_length,
        group=_WRITES,
    ),
    Curves(
        "repetition",
        "Repetition",
        "Share of an answer's runs of three tokens that it had before. It rises where the reward pays for the same "
        "words again and again.",
        "share of 3-grams",
        (("ppo/repetition", "repeated"),),
        marks=_repetition,
        group=_WRITES,
    ),
    Curves(
        "update",
        "Size of the updates",
        "Share of tokens whose ratio or value was clipped; above 0.2 the updates are too large for their rollout, and "
        "near 0 they are smaller than they need be.",
        "share of tokens",
        (("ppo/clip_fraction", "ratio clipped"), ("ppo/value_clip_fraction", "value clipped")),
        marks=_clipping,
        group=_LEARNS,
    ),
    Curves(
        "approx-kl",
        "How far an update goes",
        "From the policy that made the rollout to the one that learns from it. Far from it, what is learned is wrong.",
        "nats per token",
        (("ppo/approx_kl", "KL to the rollout's policy"),),
        marks=_step,
        group=_LEARNS,
    ),
    Curves(
        "value",
        "What the value foresees",
        "Share of the returns' variance that is explained; 1 is all, 0 no better than a constant. PPO works at 0, and "
        "slower.",
        "explained variance",
        (("ppo/explained_variance", "explained variance"),),
        reference=0.0,
        marks=_value,
        group=_LEARNS,
    ),
    Curves(
        "grad-norm",
        "Gradient",
        "Its length before it is cut. Always cut means that the learning rate is not the one that was set.",
        "length",
        (("train/grad_norm", "length of the gradient"),),
        marks=_gradient,
        group=_LEARNS,
    ),
    Curves(
        "mismatch",
        "Sampling against training",
        "Largest distance between a token's log-probability when it was sampled and when it is trained on. They are "
        "the same model, so in float32 the distance is rounding alone; half precision rounds more coarsely.",
        "nats",
        (("ppo/sampling_mismatch", "largest distance"),),
        marks=_mismatch,
        group=_LEARNS,
        log_scale=True,
    ),
    Curves(
        "imitation",
        "Imitation",
        "Negative log-likelihood of the demonstrations that are imitated on the way; it should not rise.",
        "nats per token",
        (("ppo/ptx_loss", "demonstrations"),),
        group=_LEARNS,
    ),
)

ONLINE_METHODS = ("ppo", "grpo", "rloo")


def online_curves(stage: StageData) -> tuple[Curves, ...]:
    """The curves of a stage that samples from its policy, under its own metrics; none of any other stage."""
    method = next((each for each in ONLINE_METHODS if any(name.startswith(f"{each}/") for name in stage.series)), None)
    if method is None:
        return ()
    return tuple(
        replace(each, metrics=tuple((name.replace("ppo/", f"{method}/"), label) for name, label in each.metrics))
        for each in PPO_CURVES
    )
