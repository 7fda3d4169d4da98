"""What a cost is measured on, what it gives, and the interface of all costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from prefopt.errors import DataError
from prefopt.recipe.options.costs import CostSpec
from prefopt.records import Prompt

Span = tuple[int, int]
"""Characters of a completion, from the first to behind the last."""
MOST_SPANS = 64
"""Of one completion: a page that marks thousands of places shows nothing."""


class Measured(NamedTuple):
    """What a cost says of a completion.

    Attributes:
        value: 0 where nothing is wrong; never negative, finite.
        spans: What caused it, in order, not overlapping, at most `MOST_SPANS`; none where nothing, or the whole, did.
        expected: How many violations there were to be expected in the completion, by the policy's own probabilities or
            a classifier's, in [0, 1]; None where the cost does not know.
    """

    value: float
    spans: tuple[Span, ...] = ()
    expected: float | None = None


@dataclass(frozen=True)
class Sample:
    """A completion with what is known of it.

    Attributes:
        prompt: What it answers.
        text: Without control tokens.
        token_ids: The end token included; None where only the text is known.
        finished: Whether the policy ended it.
        deviation: Between the members of a reward ensemble, in deviations of the reference's rewards.
        offsets: Gives, for every token, the character of `text` that it begins at; asked only where spans of tokens are
            wanted. None where it is not known.
        expected: How often each watched set of tokens was to be expected, by its name; see `prefopt.models.generate`.
        drawn: Names of the watched sets of which some tokens were really sampled.
    """

    prompt: Prompt
    text: str
    token_ids: Sequence[int] | None = None
    finished: bool = True
    deviation: float = 0.0
    offsets: Callable[[], Sequence[int]] | None = None
    expected: dict[str, float] = field(default_factory=dict)
    drawn: frozenset[str] = frozenset()

    def tokens(self, who: str) -> Sequence[int]:
        """The token ids.

        Raises:
            DataError: When only the text is known.
        """
        if self.token_ids is None:
            raise DataError(f"the cost '{who}' counts tokens, and only texts are given", "write `unit: words`")
        return self.token_ids

    def characters(self, start: int, end: int) -> tuple[Span, ...]:
        """The characters of the tokens from `start` to before `end`; none where that is not known or they have none."""
        if self.offsets is None or start >= end:
            return ()
        offsets = self.offsets()
        first = offsets[start] if start < len(offsets) else len(self.text)
        last = offsets[end] if end < len(offsets) else len(self.text)
        return ((first, last),) if first < last else ()


class Cost(Protocol):
    """Measures completions.

    Attributes:
        label: What metrics call it.
        threshold: A completion violates where its cost is above it.
    """

    label: str
    threshold: float

    def measure(self, samples: Sequence[Sample]) -> list[Measured]:
        """N measurements of N samples; every value is finite and not negative."""
        ...


class RuleCost(ABC):
    """A cost that looks at one completion at a time, in time linear in its length.

    Args:
        spec: Options.
    """

    def __init__(self, spec: CostSpec) -> None:
        self.label = spec.label
        self.threshold = spec.threshold

    def measure(self, samples: Sequence[Sample]) -> list[Measured]:
        """N measurements of N samples."""
        return [self.of(sample) for sample in samples]

    @abstractmethod
    def of(self, sample: Sample) -> Measured:
        """The measurement of one sample."""


NOTHING = Measured(0.0)


def costs_to_json(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Keys of a line of `samples.jsonl`: `costs` by name, and `spans` by the name of the cost that they caused."""
    return {
        "costs": {name: each.value for name, each in measured.items()},
        "spans": {name: [list(span) for span in each.spans] for name, each in measured.items() if each.spans},
    }


def merged(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans in order, those that touch or overlap made one; the first `MOST_SPANS` of them."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found[:MOST_SPANS])
