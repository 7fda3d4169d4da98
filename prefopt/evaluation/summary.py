"""From samples and scores to the metrics of a policy, and to the table a person reads."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from prefopt.evaluation.judged import Judged
from prefopt.evaluation.text import distinct, repetition
from prefopt.recipe.options.suites import POLICY_SUITES
from prefopt.stats.intervals import Interval, bootstrap_mean, bootstrap_ratio, wilson
from prefopt.stats.length_control import length_controlled_win_rate


@dataclass(frozen=True)
class PolicyResult:
    """What was measured of one policy; lists are aligned by sample and comparable between policies.

    Attributes:
        policy: Name of the stage.
        prompts: Which prompt each sample answers.
        lengths: Tokens of each sample.
        finished: Whether the policy ended each sample itself.
        kl: Divergence of each sample from the baseline in nats; empty for the baseline itself.
        scores: Reward of each sample; empty without a reward.
        violated: Whether each sample has forbidden content; empty where nothing is forbidden.
        costs: Of each sample, by the name of the cost.
        violations: Whether each sample's cost is above its threshold, by the name of the cost.
        margins: ρ(chosen) - ρ(rejected) of held-out pairs; empty for the baseline or without pairs.
        entropy: Of the next token, averaged over each sample, in nats.
        texts: The samples as text.
        judged: What a judge says of each sample against the baseline's; None without one, and for the baseline.
        ceiling: For prompts that the headroom is measured on, the reward of the best of n answers of the baseline.
    """

    policy: str
    prompts: Sequence[Hashable]
    lengths: Sequence[int]
    finished: Sequence[bool]
    kl: Sequence[float] = ()
    scores: Sequence[float] = ()
    violated: Sequence[bool] = ()
    margins: Sequence[float] = ()
    ceiling: Mapping[Hashable, float] = field(default_factory=dict)
    entropy: Sequence[float] = ()
    texts: Sequence[str] = ()
    judged: Judged | None = None
    costs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    violations: Mapping[str, Sequence[bool]] = field(default_factory=dict)


def win_scores(scores: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """1 for a win against the baseline's answer to the same prompt, 0 for a loss, one half for a tie."""
    return [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(scores, baseline, strict=True)]


def policy_metrics(
    result: PolicyResult, baseline: PolicyResult, score_name: str, suites: Collection[str] = POLICY_SUITES
) -> dict[str, float]:
    """Metrics of one policy under the names of `prefopt.tracking.metrics`, without the policy's prefix.

    Means over samples have bootstrap intervals that resample prompts; rates have Wilson intervals, on the number of
    prompts where several samples share one.

    Args:
        result: The policy's samples.
        baseline: The baseline's samples for the same prompts, in the same order.
        score_name: `gold` or `reward`.
        suites: What to put into them.
    """
    metrics: dict[str, float] = {}
    if result.scores:
        _put(metrics, score_name, bootstrap_mean(result.scores, result.prompts))
    if result.ceiling:
        _put(metrics, "best_of_n", bootstrap_mean(list(result.ceiling.values()), list(result.ceiling)))
    if result.policy != baseline.policy:
        _compare(metrics, result, baseline, suites)
    if "text" in suites:
        _describe(metrics, result)
    if result.violated and "violations" in suites:
        _rate(metrics, "violation_rate", result.violated, len(set(result.prompts)))
    if "violations" in suites:
        for name, hits in result.violations.items():
            _rate(metrics, f"violation_rate/{name}", hits, len(set(result.prompts)))
            _put(metrics, f"cost/{name}", bootstrap_mean(result.costs[name], result.prompts))
    return metrics


def _compare(metrics: dict[str, float], result: PolicyResult, baseline: PolicyResult, suites: Collection[str]) -> None:
    """How a policy stands against the baseline."""
    if result.scores and "win_rate" in suites:
        wins = win_scores(result.scores, baseline.scores)
        _put(metrics, "win_rate", bootstrap_mean(wins, result.prompts))
        extra = [float(a - b) for a, b in zip(result.lengths, baseline.lengths, strict=True)]
        _put(metrics, "win_rate_length_controlled", length_controlled_win_rate(wins, extra, result.prompts))
    if result.judged is not None and "win_rate" in suites:
        _by_judge(metrics, result.judged, result.prompts)
    if baseline.ceiling:
        _put(metrics, "headroom", headroom(result, baseline))
    if "kl" in suites:
        _put(metrics, "kl", bootstrap_mean(result.kl, result.prompts))
    if result.margins and "preference" in suites:
        correct = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in result.margins)
        _put(metrics, "preference/accuracy", wilson(correct, len(result.margins)))


def _by_judge(metrics: dict[str, float], judged: Judged, prompts: Sequence[Hashable]) -> None:
    """Win rate over the pairs that the judge did not abstain from, and how often both orders agree."""
    told = [(outcome, prompt) for outcome, prompt in zip(judged.outcomes, prompts, strict=True) if outcome is not None]
    agreed = [same for same in judged.consistent if same is not None]
    metrics["judge_abstention"] = 1 - len(told) / len(judged.outcomes)
    if told:
        _put(metrics, "judge_win_rate", bootstrap_mean([o for o, _ in told], [prompt for _, prompt in told]))
    if agreed:
        _rate(metrics, "judge_consistency", agreed, len(set(prompts)))


def _describe(metrics: dict[str, float], result: PolicyResult) -> None:
    """What a policy's completions look like."""
    _put(metrics, "length", bootstrap_mean([float(n) for n in result.lengths], result.prompts))
    _rate(metrics, "eos_rate", result.finished, len(set(result.prompts)))
    if result.entropy:
        _put(metrics, "entropy", bootstrap_mean(result.entropy, result.prompts))
    if result.texts:
        _put(metrics, "repetition", bootstrap_mean([repetition(text) for text in result.texts], result.prompts))
        metrics |= {f"distinct/{name}": distinct(result.texts, n) for n, name in ((1, "words"), (2, "pairs"))}


def headroom(result: PolicyResult, baseline: PolicyResult) -> Interval:
    """Share of the way from the baseline to the best of n of its own answers that a policy has gone.

    (policy - baseline) / (best of n - baseline): 1 is as good as always picking the best of n by the reward itself. The
    gain is the mean over all prompts, the room above the baseline that over the prompts it was measured on. The
    interval is a bootstrap over prompts of the ratio of means.
    """
    policy, start = _by_prompt(result), _by_prompt(baseline)
    gained = [policy[prompt] - start[prompt] for prompt in start]
    possible = [baseline.ceiling.get(prompt, float("nan")) - start[prompt] for prompt in start]
    return bootstrap_ratio(gained, possible)


def _by_prompt(result: PolicyResult) -> dict[Hashable, float]:
    """Mean reward of each prompt's samples."""
    values: dict[Hashable, list[float]] = {}
    for prompt, score in zip(result.prompts, result.scores, strict=True):
        values.setdefault(prompt, []).append(score)
    return {prompt: sum(scores) / len(scores) for prompt, scores in values.items()}


def _rate(metrics: dict[str, float], name: str, hits: Sequence[bool], prompts: int) -> None:
    """Wilson interval with the number of prompts as sample size: samples of one prompt are not independent."""
    share = sum(hits) / len(hits)
    _put(metrics, name, wilson(share * prompts, prompts))


def _put(metrics: dict[str, float], name: str, interval: Interval) -> None:
    metrics[f"{name}/mean"] = interval.estimate
    metrics[f"{name}/ci_low"] = interval.low
    metrics[f"{name}/ci_high"] = interval.high


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("gold", "gold reward", "{:.2f}"),
    ("reward", "reward", "{:.2f}"),
    ("best_of_n", "best of n", "{:.2f}"),
    ("headroom", "share of headroom", "{:.0%}"),
    ("win_rate", "win rate", "{:.1%}"),
    ("win_rate_length_controlled", "win rate at equal length", "{:.1%}"),
    ("judge_win_rate", "win rate by judge", "{:.1%}"),
    ("judge_consistency", "judge agrees in both orders", "{:.1%}"),
    ("preference/accuracy", "preference accuracy", "{:.1%}"),
    ("kl", "KL (nats)", "{:.2f}"),
    ("length", "length (tokens)", "{:.1f}"),
    ("eos_rate", "ended itself", "{:.1%}"),
    ("violation_rate", "violations", "{:.1%}"),
)


def _is_of_a_cost(name: str) -> bool:
    return name.startswith("violation_rate/")


def policy_table(metrics: Mapping[str, Mapping[str, float]], baseline: str) -> dict[str, object]:
    """The table a person reads: a row per policy, an estimate with its 95 % interval per cell.

    Args:
        metrics: Metrics of `policy_metrics` by policy.
        baseline: Marked in its row.

    Returns:
        `columns` and `rows`, all text.
    """
    costs = dict.fromkeys(name.rpartition("/")[0] for values in metrics.values() for name in values)
    named = [(name, name.replace("violation_rate/", "violates "), "{:.1%}") for name in costs if _is_of_a_cost(name)]
    known = [column for column in COLUMNS if any(f"{column[0]}/mean" in values for values in metrics.values())]
    used = [*known, *named]
    rows = []
    for policy, values in metrics.items():
        row = [f"{policy} (baseline)" if policy == baseline else policy]
        for name, _, form in used:
            if f"{name}/mean" not in values:
                row.append("–")
                continue
            mean, low, high = (form.format(values[f"{name}/{part}"]) for part in ("mean", "ci_low", "ci_high"))
            row.append(f"{mean} [{low}, {high}]")
        rows.append(row)
    return {"columns": ["policy", *(title for _, title, _ in used)], "rows": rows}
