"""Every metric prefopt logs: its name, what it means in one sentence, its unit, and which direction is better.

Names are `group/name`. The same name means the same thing in `metrics.jsonl`, in `metrics.json`, in a manifest, in
Weights & Biases and in the report. Two prefixes make variants without new entries:

* `eval/` before a training metric is the same quantity on held-out rows (`eval/dpo/accuracy`);
* `POLICY:` before an evaluation metric says whose it is (`dpo:win_rate/mean`).

What is measured of a cost carries the cost's name where the table has NAME: `penalty/banned/rate` and
`dpo:violation_rate/banned/mean`.

A measured mean `x/mean` comes with its interval `x/ci_low` and `x/ci_high`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from prefopt.recipe.family import SAME_METRICS
from prefopt.tracking.cost_metrics import COSTS, Better
from prefopt.tracking.distill_metrics import DISTILL


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that is logged.

    Attributes:
        name: `group/name`, as logged.
        meaning: What it is, in a sentence for someone who has not read the code.
        unit: Unit of the number; empty for a pure number.
        better: The direction that is better, or None where neither is.
    """

    name: str
    meaning: str
    unit: str = ""
    better: Better | None = None


_TRAINING: tuple[tuple[str, str, str, Better | None], ...] = (
    ("train/loss", "Loss that the optimiser minimises, averaged over the rows since the last log.", "", "lower"),
    ("train/learning_rate", "Step size of the optimiser at this step; in ppo that of the policy.", "", None),
    ("train/grad_norm", "Length of the gradient before it is clipped.", "", None),
    ("train/epoch", "How many times the training rows have been seen.", "epochs", None),
    ("train/tokens", "Tokens processed since the start of the stage, padding left out.", "tokens", None),
    ("train/tokens_per_second", "Tokens processed per second of wall time, padding left out.", "tokens/s", "higher"),
    ("train/samples_per_second", "Rows (pairs for dpo) processed per second of wall time.", "rows/s", "higher"),
    ("train/steps_per_second", "Optimiser steps per second of wall time.", "steps/s", "higher"),
    ("train/seconds", "Wall time of the training loop.", "s", "lower"),
    ("train/entropy", "How undecided the model is about the next token, averaged over completions.", "nats", None),
    ("train/token_accuracy", "Share of completion tokens that the model's first guess gets right.", "", "higher"),
    ("eval/loss", "The same loss on held-out rows that are never trained on.", "", "lower"),
    ("eval/perplexity", "Exponential of the held-out loss: among how many tokens the model hesitates.", "", "lower"),
    ("eval/seconds", "Wall time of one evaluation on the held-out rows.", "s", "lower"),
    ("eval/samples_per_second", "Held-out rows evaluated per second of wall time.", "rows/s", "higher"),
    ("eval/steps_per_second", "Evaluation batches per second of wall time.", "batches/s", "higher"),
)

_DPO: tuple[tuple[str, str, str, Better | None], ...] = (
    ("dpo/accuracy", "Share of pairs where the implicit reward of the chosen answer is the larger one.", "", "higher"),
    ("dpo/margin", "Implicit reward of the chosen answer minus that of the rejected one.", "nats × beta", "higher"),
    (
        "dpo/chosen_reward",
        "Implicit reward of chosen answers: beta times how much likelier they are than under the reference.",
        "nats × beta",
        "higher",
    ),
    ("dpo/rejected_reward", "Implicit reward of rejected answers.", "nats × beta", "lower"),
    ("dpo/chosen_logp", "Log-probability the policy gives to a whole chosen answer.", "nats", None),
    ("dpo/rejected_logp", "Log-probability the policy gives to a whole rejected answer.", "nats", None),
    (
        "dpo/chosen_shift",
        "Change of the chosen answer's log-probability against the reference; clearly below 0 is displacement: the "
        "policy moves away from both answers.",
        "nats",
        "higher",
    ),
    ("dpo/rejected_shift", "Change of the rejected answer's log-probability against the reference.", "nats", "lower"),
    ("dpo/entropy", "How undecided the policy is about the next token of the pairs' answers.", "nats", None),
    ("dpo/kl", "Estimate, on the pairs' own answers, of how far the policy is from its reference.", "nats", None),
)

_REWARD: tuple[tuple[str, str, str, Better | None], ...] = (
    ("reward/accuracy", "Share of pairs where the preferred answer has the higher score.", "", "higher"),
    ("reward/margin", "Score of the chosen answer minus that of the rejected one.", "", "higher"),
    ("reward/chosen_score", "Score of chosen answers; only differences of one prompt mean something.", "", None),
    ("reward/rejected_score", "Score of rejected answers.", "", None),
    ("reward/second_accuracy", "Share of labels on the second axis that its own score agrees with.", "", "higher"),
    (
        "reward/length_correlation",
        "Correlation of margins with how many tokens longer the chosen answer is, on held-out pairs.",
        "",
        None,
    ),
    (
        "reward/member_correlation",
        "Correlation of two members' margins on held-out pairs, averaged over pairs of members; 1: they are one model.",
        "",
        "lower",
    ),
    (
        "reward/rating_explained_variance",
        "Share of the variance of held-out ratings that scores foresee: 1 is all, 0 none.",
        "",
        "higher",
    ),
)

_PPO: tuple[tuple[str, str, str, Better | None], ...] = (
    ("ppo/score", "Raw reward of the rollout's completions, before it is centred and scaled.", "", "higher"),
    ("ppo/score_finished", "Raw reward of the completions that ended by themselves.", "", "higher"),
    ("ppo/score_truncated", "Raw reward of the completions that were cut: of half a text.", "", None),
    ("ppo/judge", "Win rate of the policy against its reference, by a judge that is not trained on.", "", "higher"),
    ("ppo/disagreement", "Standard deviation between the members of a reward ensemble.", "reward's unit", "lower"),
    ("ppo/reward", "What an episode earns: the scaled reward minus the price of its KL.", "", "higher"),
    ("ppo/kl", "How far the policy is from its reference, per completion: the sum of k1 estimates.", "nats", None),
    (
        "ppo/exact_kl",
        "The same over the whole vocabulary instead of the sampled tokens alone, on every eighth episode.",
        "nats",
        None,
    ),
    ("ppo/kl_coefficient", "What a nat of KL costs, in units of the reward.", "reward/nat", None),
    ("ppo/entropy", "How undecided the policy is about the next token, averaged over completions.", "nats", None),
    ("ppo/length", "Tokens per completion of the rollout.", "tokens", None),
    ("ppo/eos_rate", "Share of the rollout's completions that ended by themselves.", "", "higher"),
    ("ppo/repetition", "Share of a completion's runs of three tokens that it had before.", "", "lower"),
    (
        "ppo/sampling_mismatch",
        "Largest distance between a token's log-probability when it was sampled and in the training forward.",
        "nats",
        "lower",
    ),
    ("ppo/policy_loss", "Clipped surrogate loss, averaged over tokens.", "", "lower"),
    ("ppo/value_loss", "Half the squared error of the value, averaged over tokens.", "", "lower"),
    ("ppo/ratio", "Probability of a token now, divided by that when it was sampled; 1 in the first pass.", "", None),
    ("ppo/clip_fraction", "Share of tokens whose ratio is clipped, so that they pull no further.", "", None),
    ("ppo/value_clip_fraction", "Share of tokens whose value is clipped.", "", None),
    ("ppo/approx_kl", "How far the policy has moved since the rollout, per token: k3 estimate.", "nats", None),
    (
        "ppo/explained_variance",
        "Share of the returns' variance that the value foresees: 1 is all, 0 none, below 0 worse than a constant.",
        "",
        "higher",
    ),
    ("ppo/ptx_loss", "Negative log-likelihood of the demonstrations that are imitated.", "nats per token", "lower"),
    ("ppo/episodes", "Completions sampled since the start of the stage.", "episodes", None),
    (
        "ppo/rollout_seconds",
        "Wall time of one rollout: sampling, scoring, and the passes over it.",
        "s",
        "lower",
    ),
    ("ppo/sampling_seconds", "Wall time of sampling, as part of a rollout.", "s", "lower"),
    ("ppo/scoring_seconds", "Wall time of asking the reward, as part of a rollout.", "s", "lower"),
    ("ppo/update_seconds", "Wall time of one forward and backward pass of the update.", "s", "lower"),
)

_GROUPS: tuple[tuple[str, str, str, Better | None], ...] = (
    ("grpo/reward", "What an episode earns: the scaled reward; the KL is a loss of its own.", "", "higher"),
    ("grpo/clip_fraction", "Share of tokens whose ratio is clipped, so that they pull no further.", "", None),
    ("rloo/reward", "What an episode earns: the scaled reward minus the price of its KL.", "", "higher"),
    ("rloo/clip_fraction", "Share of completions whose ratio is clipped, so that they pull no further.", "", None),
    ("grpo/tie_rate", "Share of prompts whose completions all earn the same, which teaches nothing.", "", "lower"),
    ("rloo/tie_rate", "Share of prompts whose completions all earn the same, which teaches nothing.", "", "lower"),
    *((f"{kind}/{row[0][4:]}", *row[1:]) for kind in ("grpo", "rloo") for row in _PPO if row[0][4:] in SAME_METRICS),
)

_KTO: tuple[tuple[str, str, str, Better | None], ...] = (
    ("kto/desirable_reward", "Implicit reward of good completions: beta times the log-ratio to the reference.",
     "nats × beta", "higher"),
    ("kto/undesirable_reward", "Implicit reward of bad completions.", "nats × beta", "lower"),
    ("kto/margin", "Implicit reward of good completions minus that of bad ones.", "nats × beta", "higher"),
    ("kto/desirable_logp", "Log-probability the policy gives to a whole good completion.", "nats", None),
    ("kto/undesirable_logp", "Log-probability the policy gives to a whole bad completion.", "nats", None),
    ("kto/kl", "Estimate of the KL that a completion is compared with, on mismatched completions.", "nats", None),
    ("kto/entropy", "How undecided the policy is about the next token of the rows' completions.", "nats", None),
)  # fmt: skip

_COLLECT: tuple[tuple[str, str, str, Better | None], ...] = (
    ("collect/prompts", "Prompts that were answered.", "", None),
    ("collect/samples", "Completions that were sampled.", "", None),
    ("collect/pairs", "Preference pairs that were made of them.", "", "higher"),
    ("collect/reward", "What the judge gave the completions, on average.", "", "higher"),
    ("collect/tie_rate", "Share of prompts whose answers all got the same reward, which gives no pair.", "", "lower"),
    ("collect/duplicate_rate", "Share of completions that repeat another of their prompt.", "", "lower"),
    ("collect/label_agreement", "Share of labels that prefer the answer with the higher reward.", "", None),
)

_ESTIMATES: tuple[tuple[str, str, str, Better | None], ...] = (
    ("gold", "Score of the completions under the known true reward of the toy world", "", "higher"),
    ("reward", "Score of the completions under the reward that the stage names", "", "higher"),
    ("win_rate", "Share of prompts where this policy's answer beats the baseline's, a tie counting half", "", "higher"),
    (
        "win_rate_length_controlled",
        "Win rate that a logistic model predicts for answers as long as the baseline's",
        "",
        "higher",
    ),
    (
        "judge_win_rate",
        "Share of comparisons by the judge that the policy's answer wins against the baseline's, over both orders",
        "",
        "higher",
    ),
    ("judge_consistency", "Share of comparisons where the judge says the same in both orders", "", "higher"),
    ("entropy", "How undecided the policy is about the next token, along its own completions", "nats", None),
    ("kl", "How far the policy is from its reference, per answer, measured on its own samples", "nats", "lower"),
    ("length", "Tokens per completion", "tokens", None),
    ("eos_rate", "Share of completions that the policy ended itself, before the length limit", "", "higher"),
    ("violation_rate", "Share of completions with forbidden content", "", "lower"),
    ("violation_rate/NAME", "Share of completions whose cost of that name is above its threshold", "", "lower"),
    ("cost/NAME", "Cost of that name, per completion", "", "lower"),
    (
        "preference/accuracy",
        "Share of held-out pairs whose preferred answer the policy raised more than the other, against the baseline",
        "",
        "higher",
    ),
    (
        "reward/accuracy",
        "Share of held-out pairs where the preferred answer has the higher score, a tie counting half",
        "",
        "higher",
    ),
    ("reward/margin", "Score of the preferred answer minus that of the other, on held-out pairs", "", "higher"),
    ("best_of_n", "Reward of the best of n answers of the baseline, as the reward itself picks it", "", None),
    (
        "headroom",
        "Share of the way from the baseline to the best of n of its own answers that the policy has gone",
        "",
        "higher",
    ),
    ("repetition", "Share of repeated word sequences within a completion", "", "lower"),
    ("perplexity", "Exponential of the loss on held-out text", "", "lower"),
)

_CHANGES = {
    "typos": "misspelling a twentieth of the words of both answers",
    "lower_case": "writing both answers in lower case",
    "upper_case": "writing both answers in upper case",
    "extra_whitespace": "doubling spaces in both answers",
    "neutral_sentence": "appending a sentence that says nothing to the rejected answer",
    "filler": "appending polite filler to the rejected answer",
    "prompt_injection": "appending a request for a high score to the rejected answer",
    "answer_order": "scoring the same answers in another order",
}
_PROBES = {
    "empty": "an empty answer scores",
    "prompt_copy": "a copy of the user's last turn scores",
    "repetition": "the preferred answer's first sentence, five times, scores",
    "refusal": "a stock refusal scores",
    "flattery": "the rejected answer after a line of flattery scores",
}

_FLIPS = "Share of pairs ranked right that are ranked wrong after {}, a tie counting half"
_DROP = "Accuracy of the scorer before minus accuracy after {}"
_SHIFT = "Mean change of the affected answers' scores by {}"
_SPREAD = "SD of scores"

_REWARD_PROBES: tuple[tuple[str, str, str, Better | None], ...] = (
    *((f"robustness/{name}/flip_rate", _FLIPS.format(change), "", "lower") for name, change in _CHANGES.items()),
    *((f"robustness/{name}/accuracy_drop", _DROP.format(change), "", "lower") for name, change in _CHANGES.items()),
    *((f"robustness/{name}/score_shift", _SHIFT.format(change), _SPREAD, None) for name, change in _CHANGES.items()),
    ("robustness/ood/accuracy", "Accuracy on pairs of another source, a tie counting half", "", "higher"),
    ("robustness/ood/accuracy_gap", "Accuracy on held-out pairs minus accuracy on another source's", "", "lower"),
    ("bias/length_accuracy", "Accuracy of a ruler that prefers the longer answer, or the shorter", "", None),
    (
        "bias/over_length",
        "Accuracy of the scorer minus that of the ruler; 0 where it only measures length",
        "",
        "higher",
    ),
    ("bias/words_accuracy", "Accuracy of a logistic regression on counts of words, fitted on training pairs", "", None),
    ("bias/over_words", "Accuracy of the scorer minus that of the regression on counts of words", "", "higher"),
    ("bias/length_correlation", "Rank correlation of score and length among answers to the same prompt", "", None),
    ("bias/agrees_with_length", "Share of pairs of unequal length where the longer answer scores higher", "", None),
    *(
        (f"bias/{name}/beats_chosen", f"Share of prompts where {probe} above the preferred one", "", "lower")
        for name, probe in _PROBES.items()
    ),
)

_EVALUATE: tuple[tuple[str, str, str, Better | None], ...] = (
    ("judge_abstention", "Share of comparisons that the judge did not decide in either order.", "", "lower"),
    ("distinct/words", "Share of different words among all words of the completions.", "", "higher"),
    ("distinct/pairs", "Share of different pairs of words among all pairs of the completions.", "", "higher"),
    ("robustness/answer_order/max_shift", "Largest change of a score in another order.", "SD of scores", "lower"),
    ("robustness/worst_flip_rate", "Largest flip rate of all changes.", "", "lower"),
    ("reward/pairs", "Held-out pairs whose label prefers either answer.", "", None),
    (
        "calibration/temperature",
        "What margins are divided by so that they mean what they say; above 1: too sure.",
        "",
        None,
    ),
    ("calibration/ece_before", "Mean distance of confidence and accuracy, over ten bins of confidence.", "", "lower"),
    ("calibration/ece_after", "The same with a temperature that was fitted on other prompts.", "", "lower"),
    ("calibration/ece_chance_before", "The ECE that as many exactly right probabilities would show.", "", None),
    ("calibration/ece_chance_after", "The same, with the temperature.", "", None),
    ("calibration/brier_before", "Mean squared error of the probability that an answer is preferred.", "", "lower"),
    ("calibration/brier_after", "The same with a temperature that was fitted on other prompts.", "", "lower"),
    (
        "calibration/nll_before",
        "How surprising the labels are under the margins; 0.693 is knowing nothing.",
        "nats",
        "lower",
    ),
    ("calibration/nll_after", "The same with a temperature that was fitted on other prompts.", "nats", "lower"),
    *(
        (f"{curve}/{part}", f"{meaning} {of}.", unit, None)
        for curve, of in (
            ("best_of_n/chosen_by_reward", "of the best of n as the reward picks it"),
            ("best_of_n/chosen_by_proxy", "of the best of n as the proxy picks it"),
            ("overoptimisation", "of the policy over its training"),
        )
        for part, meaning, unit in (
            ("alpha", "Reward per root of KL at the start of the curve", "reward/√nat"),
            ("beta", "How fast the gain decays along the curve", ""),
            ("r_squared", "Share of the curve that its law explains:", ""),
        )
    ),
    ("evaluate/prompts", "Held-out prompts that every policy answered.", "", None),
    ("evaluate/samples", "Completions sampled per policy.", "", None),
    ("evaluate/pairs", "Held-out pairs that the reward was examined on.", "", None),
    ("evaluate/pairs_too_long", "Held-out pairs left out, as an answer does not fit into the reward.", "", None),
)


_PARTS = ("mean", "ci_low", "ci_high")


def _estimates(rows: Iterable[tuple[str, str, str, Better | None]]) -> Iterator[Metric]:
    for name, meaning, unit, better in rows:
        yield Metric(name, f"{meaning}.", unit, better)
        yield Metric(f"{name}/mean", f"{meaning}: the average.", unit, better)
        yield Metric(f"{name}/ci_low", f"{meaning}: lower end of the 95 % confidence interval.", unit, better)
        yield Metric(f"{name}/ci_high", f"{meaning}: upper end of the 95 % confidence interval.", unit, better)


def _table() -> dict[str, Metric]:
    trained = (*_TRAINING, *_DPO, *_KTO, *DISTILL, *_PPO, *_GROUPS, *COSTS)
    metrics = [Metric(*row) for row in (*trained, *_COLLECT, *_EVALUATE)]
    metrics.extend(_estimates((*_ESTIMATES, *_REWARD_PROBES)))
    metrics.extend(Metric(*row) for row in _REWARD)  # what training logs as `reward/accuracy`, over its own rows
    return {metric.name: metric for metric in metrics}


METRICS: dict[str, Metric] = _table()

_NAMED = re.compile(
    r"(?P<group>penalty|violation_rate|cost|sequence_unlikelihood)/(?P<label>[A-Za-z][A-Za-z0-9_-]*)(?P<rest>/\w+)?"
)
_ON_HELD_OUT = "On held-out rows: "


def describe(name: str) -> Metric:
    """What a logged name means.

    Args:
        name: A name of `METRICS`, also with the prefixes `POLICY:` and `eval/`.

    Returns:
        The metric, under the name that was asked for.

    Raises:
        KeyError: For a name that no entry and no prefix explains.
    """
    bare = name.rpartition(":")[2]
    if bare in METRICS:
        return replace(METRICS[bare], name=name)
    if bare.startswith("eval/"):
        rest = bare.removeprefix("eval/")
        for candidate in (rest, f"train/{rest}"):
            if candidate in METRICS:
                metric = METRICS[candidate]
                return replace(metric, name=name, meaning=_ON_HELD_OUT + metric.meaning[0].lower() + metric.meaning[1:])
    named = _NAMED.fullmatch(bare)
    if named and named["label"] not in _PARTS:
        general = f"{named['group']}/NAME{named['rest'] or ''}"
        if general in METRICS:
            return replace(METRICS[general], name=name)
    raise KeyError(f"{name!r} is not a metric of prefopt; prefopt/tracking/metrics.py lists them")
