"""The nouns of preference optimisation: frozen records that cannot exist in an invalid state.

A *prompt* is a conversation that ends with the turn to be answered; a *completion* is the text of the assistant's
answer. A pair holds two completions of one prompt and how likely people are to prefer the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Raises:
        ValueError: For a role that is not system, user or assistant, or content that is not text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, not {self.role!r}")
        if not isinstance(self.content, str):
            raise ValueError(f"content of a message must be text, not {type(self.content).__name__}")


Prompt = tuple[Message, ...]


def conversation(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as chat templates, reward functions and artefacts have them: `{"role", "content"}` each."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _check_prompt(prompt: Prompt) -> None:
    if not prompt or not any(message.content.strip() for message in prompt):
        raise ValueError("prompt is empty")
    if any(message.role == "system" for message in prompt[1:]):
        raise ValueError("a system message may only come first")


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be finite and not negative, not {weight}")


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """How a policy wrote a completion; see `prefopt.data.sampled`.

    Attributes:
        finished: Whether the policy ended it; False where it was cut at the length limit.
        text: Hash of the completion: nothing here is about another text.
        ids: Its tokens, the end token included where it was sampled; empty where nobody kept them.
        context: Hash of the tokenizer, its chat template and the prompt that they were sampled with.
    """

    finished: bool
    text: str
    ids: tuple[int, ...] = ()
    context: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the answer to imitate.

    Attributes:
        weight: Multiplies the row's loss; not negative.
        extra: Columns of the source that prefopt does not interpret.
        sampled: How a policy wrote the completion; None where nobody said.

    Raises:
        ValueError: For an empty prompt or completion.
    """

    prompt: Prompt
    completion: str
    weight: float = 1.0
    source: str = ""
    id: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    sampled: SampledTokens | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not self.completion.strip():
            raise ValueError("completion is empty")
        _check_weight(self.weight)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt and how often people prefer the first.

    Attributes:
        probability: P(chosen is preferred) in [0, 1]; 0.5 is a tie.
        margin: How much better `chosen` is, in the labeller's own unit; None where nobody said.
        weight: Multiplies the row's loss; not negative.
        extra: Columns of the source that prefopt does not interpret.
        score_chosen: Absolute rating of `chosen`, in the labeller's own unit; None where nobody rated it.
        score_rejected: The same of `rejected`.
        axes: P(chosen is preferred) on further axes by name, such as `safe`, each in [0, 1].
        sampled_chosen: How a policy wrote `chosen`; None where nobody said.
        sampled_rejected: The same of `rejected`.

    Raises:
        ValueError: For an empty prompt, an empty completion, equal completions, or a number out of range.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float = 1.0
    margin: float | None = None
    weight: float = 1.0
    source: str = ""
    annotator: str = ""
    id: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    score_chosen: float | None = None
    score_rejected: float | None = None
    axes: Mapping[str, float] = field(default_factory=dict)
    sampled_chosen: SampledTokens | None = None
    sampled_rejected: SampledTokens | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not self.chosen.strip() or not self.rejected.strip():
            raise ValueError("completion is empty")
        if self.chosen == self.rejected:
            raise ValueError("chosen equals rejected")
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must be in [0, 1], not {self.probability}")
        for name in ("margin", "score_chosen", "score_rejected"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, not {value}")
        for axis, probability in self.axes.items():
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"probability on the axis {axis} must be in [0, 1], not {probability}")
        _check_weight(self.weight)


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A completion that people marked as good or bad, without another to compare it with.

    Attributes:
        label: Whether it is desirable.
        weight: Multiplies the row's loss; not negative.
        extra: Columns of the source that prefopt does not interpret.
        sampled: How a policy wrote the completion; None where nobody said.

    Raises:
        ValueError: For an empty prompt or completion.
    """

    prompt: Prompt
    completion: str
    label: bool
    weight: float = 1.0
    source: str = ""
    id: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    sampled: SampledTokens | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not self.completion.strip():
            raise ValueError("completion is empty")
        _check_weight(self.weight)


def unpaired(item: PreferencePair | Unpaired) -> list[Unpaired]:
    """A row as completions with labels: of a pair the preferred is good and the other bad; of a tie there are none."""
    if isinstance(item, Unpaired):
        return [item]
    if item.probability == 0.5:
        return []
    first = item.probability > 0.5
    sides = ((item.chosen, first, item.sampled_chosen), (item.rejected, not first, item.sampled_rejected))
    return [
        Unpaired(item.prompt, text, good, item.weight, item.source, item.id, sampled=sampled)
        for text, good, sampled in sides
    ]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy answered.

    Attributes:
        policy: Name of the stage that sampled it.
        finished: True when the policy ended the answer itself; False when it was cut at the length limit.
        tokens: Number of tokens sampled, the end-of-sequence token included.
    """

    prompt: Prompt
    text: str
    policy: str = ""
    finished: bool = True
    tokens: int = 0

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if self.tokens < 0:
            raise ValueError(f"tokens must not be negative, not {self.tokens}")


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer gave a completion.

    Attributes:
        value: In the scorer's own unit; finite.
        std: Disagreement between the members of an ensemble, in the same unit; 0 for a single scorer.
        axes: Scores on further axes by name, such as `safe`, where the scorer has them.
    """

    value: float
    std: float = 0.0
    axes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.value, self.std, *self.axes.values()))):
            raise ValueError(f"a score must be finite, not {self.value} ± {self.std} {dict(self.axes) or ''}".rstrip())


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's verdict on completions A and B of a prompt.

    Attributes:
        judge: Who said it: an annotator, a model or a rule.
        probability: P(A is preferred) in [0, 1]; 0.5 is a tie; None is an abstention, which never counts as a vote.
    """

    judge: str
    probability: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.probability is not None and not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must be in [0, 1] or None, not {self.probability}")
