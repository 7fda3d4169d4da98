"""Which tokens of a completion caused a cost, and what weighs it to unlearn them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from prefopt.models.token_offsets import token_offsets
from prefopt.records import Message, Prompt
from prefopt.rewards.costs.sample import MOST_SPANS, Cost, Measured, Sample, Span
from prefopt.rewards.shaper import lazy_offsets


@dataclass(frozen=True)
class WeightedCost:
    """A cost and its weight λ."""

    cost: Cost
    weight: float


class Flags(NamedTuple):
    """What costs say of a completion's T tokens.

    Attributes:
        imitation: [T], 0 where a token is flagged, 1 elsewhere.
        unlikelihood: [T], the weights of the costs that flag it, added up.
    """

    imitation: list[float]
    unlikelihood: list[float]


_COUNTED = ("completions", "tokens", "flagged_tokens", "not_located")


@dataclass
class FlagCounts:
    """What was flagged, for the manifest.

    Attributes:
        completions: Looked at.
        tokens: Of them.
        flagged_tokens: Flagged by any cost.
        violating: Completions by the name of the cost that they violate.
        without_span: Of those, completions of which the cost does not say where.
        not_located: Times that it does, and the completion's tokens cannot be found in its text: none is imitated, and
            none unlearned.
    """

    completions: int = 0
    tokens: int = 0
    flagged_tokens: int = 0
    violating: Counter[str] = field(default_factory=Counter)
    without_span: Counter[str] = field(default_factory=Counter)
    not_located: int = 0

    @classmethod
    def total(cls, parts: Sequence[FlagCounts]) -> FlagCounts:
        """Of all parts together."""
        found = cls()
        for part in parts:
            found.completions += part.completions
            found.tokens += part.tokens
            found.flagged_tokens += part.flagged_tokens
            found.violating += part.violating
            found.without_span += part.without_span
            found.not_located += part.not_located
        return found

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        numbers = {name: getattr(self, name) for name in _COUNTED}
        return {
            **numbers,
            "violating": dict(self.violating),
            "without_span": dict(self.without_span),
        }


def samples_of(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[Sample]:
    """Tokenised completions as costs look at them: decoded, as those that a policy samples are.

    Args:
        prompts: Token ids of N prompts; costs see each as one message, chat template and all.
        completions: Token ids of N completions, the end token included.
        tokenizer: That made them.
    """
    where = partial(token_offsets, tokenizer)
    found = []
    for prompt, ids in zip(prompts, completions, strict=True):
        asked: Prompt = (Message("user", tokenizer.decode(list(prompt), skip_special_tokens=True)),)
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        found.append(Sample(asked, text, tuple(ids), offsets=lazy_offsets(where, tuple(ids), text)))
    return found


def flag(samples: Sequence[Sample], costs: Sequence[WeightedCost]) -> tuple[list[Flags], FlagCounts]:
    """Flag the tokens that violate.

    A token is flagged where it has at least one character within a span of a completion whose cost is above its
    threshold. Costs name at most `MOST_SPANS` spans: what comes after that many is neither imitated nor unlearned, as
    are all tokens of a violating completion whose tokens cannot be found in its text.

    Args:
        samples: With `token_ids` and `offsets`.
        costs: What flags.

    Returns:
        Flags of each sample, and what was flagged.
    """
    found = [Flags([1.0] * len(_ids(sample)), [0.0] * len(_ids(sample))) for sample in samples]
    counts = FlagCounts(len(samples), sum(len(_ids(sample)) for sample in samples))
    for weighted in costs:
        label, threshold = weighted.cost.label, weighted.cost.threshold
        for sample, flags, measured in zip(samples, found, weighted.cost.measure(samples), strict=True):
            if measured.value <= threshold:
                continue
            counts.violating[label] += 1
            if not measured.spans:
                counts.without_span[label] += 1
            counts.not_located += not _mark(sample, flags, measured, weighted.weight)
    counts.flagged_tokens = sum(flags.imitation.count(0.0) for flags in found)
    return found, counts


def tokens_within(starts: Sequence[int], end: int, spans: Sequence[Span]) -> list[int]:
    """Numbers of the tokens that have a character within a span.

    A token without characters of its own, as the first bytes of a letter, counts with the letter that it begins.

    Args:
        starts: The character that each of T tokens begins at, never falling.
        end: Characters of the text.
        spans: In order, not overlapping.
    """
    found: list[int] = []
    place = 0
    for number, start in enumerate(starts):
        after = max(start + 1, starts[number + 1] if number + 1 < len(starts) else end)
        while place < len(spans) and spans[place][1] <= start:
            place += 1
        if place < len(spans) and spans[place][0] < after and start < end:
            found.append(number)
    return found


def _mark(sample: Sample, flags: Flags, measured: Measured, weight: float) -> bool:
    """Flag the tokens of spans; whether the completion's tokens could be found."""
    if not measured.spans:
        return True
    starts = sample.offsets() if sample.offsets is not None else []
    if not starts:
        flags.imitation[:] = [0.0] * len(flags.imitation)
        return False
    for token in tokens_within(starts, len(sample.text), measured.spans):
        flags.imitation[token] = 0.0
        flags.unlikelihood[token] += weight
    if len(measured.spans) >= MOST_SPANS:
        behind = tokens_within(starts, len(sample.text), [(measured.spans[-1][1], len(sample.text))])
        for token in behind:
            flags.imitation[token] = 0.0
    return True


def _ids(sample: Sample) -> Sequence[int]:
    return sample.tokens("flags")
