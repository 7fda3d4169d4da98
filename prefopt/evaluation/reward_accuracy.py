"""How often a reward model prefers what people prefer: over all held-out pairs, and where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prefopt.data.splits import prompt_key
from prefopt.evaluation.findings import Finding, Findings, ScoredPair, number, percent
from prefopt.stats.intervals import Interval, bootstrap_mean

_MOST_GROUPS = 12
_SMALLEST_GROUP = 5

Grouping = Callable[[ScoredPair], str | None]


def reward_accuracy(pairs: Sequence[ScoredPair]) -> Findings:
    """Accuracy over pairs, clustered by prompt: of all of them, by source, by length and by how sure the model is.

    A tie of the scores counts one half; pairs whose label is a tie say nothing and are left out.

    Raises:
        ValueError: When no label prefers either answer.
    """
    told = [pair for pair in pairs if pair.told]
    if not told:
        raise ValueError("no label prefers either answer")
    findings = Findings()
    findings.put("reward/accuracy", accuracy(told))
    findings.put("reward/margin", bootstrap_mean([pair.margin for pair in told], clusters(told)))
    findings.metrics["reward/pairs"] = float(len(told))
    rows = [_row("all", "", told)]
    rows += [_row("source", name, group) for name, group in _groups(told, lambda p: p.pair.source or None)]
    rows += [_row("annotator", name, group) for name, group in _groups(told, lambda p: p.pair.annotator or None)]
    rows += [_row("preferred is", name, group) for name, group in _groups(told, _length)]
    rows += [_row("margin of the scores", name, group) for name, group in _groups(told, _quartiles(told))]
    findings.tables.append(
        Finding(
            "Reward accuracy on held-out pairs",
            ("by", "group", "pairs", "accuracy", "mean margin"),
            tuple(rows),
            "A model that is right only where the preferred answer is longer measures length; one that is right no "
            "more often where its margin is large does not know when it knows.",
        )
    )
    return findings


def accuracy(pairs: Sequence[ScoredPair]) -> Interval:
    """Share of pairs where the scores prefer what the label prefers, with an interval over prompts."""
    return bootstrap_mean([pair.hit for pair in pairs], clusters(pairs))


def clusters(pairs: Sequence[ScoredPair]) -> list[str]:
    """The prompt of each pair: pairs of one prompt are not independent."""
    return [prompt_key(pair.pair.prompt) for pair in pairs]


def _row(by: str, name: str, pairs: Sequence[ScoredPair]) -> tuple[str, ...]:
    margin = bootstrap_mean([pair.margin for pair in pairs], clusters(pairs))
    return (by, name, f"{len(pairs)}", percent(accuracy(pairs)), number(margin))


def _groups(pairs: Sequence[ScoredPair], grouping: Grouping) -> list[tuple[str, list[ScoredPair]]]:
    """Groups by name; none where there is only one, and the largest where there are many."""
    found: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        name = grouping(pair)
        if name is not None:
            found.setdefault(name, []).append(pair)
    large = sorted(found.items(), key=lambda item: -len(item[1]))[:_MOST_GROUPS]
    if len(found) < 2:
        return []
    return sorted((name, group) for name, group in large if len(group) >= _SMALLEST_GROUP)


def _length(pair: ScoredPair) -> str:
    chosen, rejected = len(pair.pair.chosen), len(pair.pair.rejected)
    preferred, other = (chosen, rejected) if pair.pair.probability > 0.5 else (rejected, chosen)
    if abs(preferred - other) <= 0.1 * max(preferred, other):
        return "2 as long (within 10 %)"
    return "1 shorter" if preferred < other else "3 longer"


def _quartiles(pairs: Sequence[ScoredPair]) -> Grouping:
    edges = np.quantile([abs(pair.margin) for pair in pairs], [0.25, 0.5, 0.75])

    def grouping(pair: ScoredPair) -> str:
        quarter = int(np.searchsorted(edges, abs(pair.margin), side="left"))
        return ("1 smallest quarter", "2 second quarter", "3 third quarter", "4 largest quarter")[quarter]

    return grouping
