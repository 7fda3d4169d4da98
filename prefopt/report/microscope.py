"""The rollout microscope: episodes of ppo token by token, and what each was paid for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.report.damage import Warn, attempt, items, mapping, real, shortened
from prefopt.report.format import Segment, fixed, number, segments, turns

FILE = "microscope.jsonl"
MOST_EPISODES = 8
MOST_TOKENS = 2048
"""Of an episode; the rest is counted."""

STEPS = 4
"""Shades on either side of 0."""
_SHARE = 0.98  # of all tokens have a shade of their own size; the rest share the strongest
_DIGITS = 3

_SYMBOLS = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_EMPTY = "∅"


@dataclass(frozen=True)
class Measure:
    """What the colour of a token can show.

    Attributes:
        name: In the file, and in the classes of the page.
        mark: First letter of the classes of its shades.
        signed: Whether it lies on both sides of 0.
    """

    name: str
    mark: str
    title: str
    meaning: str
    signed: bool = True


MEASURES = (
    Measure(
        "kl",
        "k",
        "KL",
        "Nats: log-probability of the token under the policy minus that under the reference. Orange is likelier than "
        "under the reference, blue less likely. The tokens of an episode sum to its KL.",
    ),
    Measure(
        "advantage",
        "a",
        "advantage",
        "How much better the episode went from here on than the value had expected, as the update sees it. Orange "
        "tokens are made likelier, blue ones less likely.",
    ),
    Measure(
        "value",
        "v",
        "value",
        "The reward that the value expects from here on, before the token is known.",
    ),
    Measure(
        "entropy",
        "e",
        "entropy",
        "Nats: how undecided the policy was when it chose the token.",
        signed=False,
    ),
)
_NUMBERS = (*(measure.name for measure in MEASURES), "logp")
_TITLES = {measure.name: measure.title for measure in MEASURES} | {"logp": "log-probability"}

_TERMS = {"score": "score, scaled", "missing_eos": "no end token", "kl": "price of the KL"}
_ORDER = ("score", "missing_eos")  # then whatever else there is, and the price of the KL at last


@dataclass(frozen=True)
class Token:
    """A token as the file has it; `numbers` by name: KL, advantage, value, entropy, and logp."""

    text: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class CloseUp:
    """An episode as the file has it.

    Attributes:
        score: Raw.
        terms: Of the reward, by name: they sum to it.
        left_out: Tokens beyond `MOST_TOKENS`.
    """

    rollout: int
    prompt: list[tuple[str, list[Segment]]]
    finished: bool
    score: float
    terms: Mapping[str, float]
    tokens: tuple[Token, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Shown:
    """A token, ready to show.

    Attributes:
        parts: Its text, white space as symbols.
        classes: A shade per measure.
        title: All its numbers.
    """

    parts: list[Segment]
    classes: str
    title: str


@dataclass(frozen=True)
class Episode:
    """An episode, ready to show.

    Attributes:
        facts: About it, in words.
        terms: (what, amount) of the reward; the shown amounts add up to `reward`.
    """

    prompt: list[tuple[str, list[Segment]]]
    tokens: list[Shown]
    facts: list[str]
    finished: bool
    terms: list[tuple[str, str]]
    reward: str
    left_out: int


@dataclass(frozen=True)
class Scale:
    """How a measure becomes a shade.

    Attributes:
        limit: Where the strongest shade begins; 0 where all values are 0.
    """

    measure: Measure
    limit: float

    @property
    def shades(self) -> list[str]:
        """Class of every shade, in the order of the legend."""
        count = 2 * STEPS + 1 if self.measure.signed else STEPS + 1
        return [f"{self.measure.mark}{index}" for index in range(count)]

    @property
    def ends(self) -> tuple[str, str]:
        """What stands at either end of the legend."""
        if self.limit == 0:
            return "0", "0 everywhere"
        low = f"{_written(-self.limit)} or less" if self.measure.signed else "0"
        return low, f"{_written(self.limit)} or more"

    def shade(self, value: float) -> str:
        """Class of a value."""
        steps = 0 if self.limit == 0 else round(max(-1.0, min(1.0, value / self.limit)) * STEPS)
        return f"{self.measure.mark}{steps + STEPS if self.measure.signed else max(0, steps)}"


@dataclass(frozen=True)
class Microscope:
    """The close-ups of one stage."""

    stage: str
    rule: str
    scales: list[Scale]
    episodes: list[Episode]


def read_close_ups(rows: Sequence[Mapping[str, Any]], warn: Warn) -> tuple[CloseUp, ...]:
    """The rows of `microscope.jsonl`; damaged ones are warned about and left out."""
    found = [attempt(f"{FILE}: row {n}", _close_up, row, warn) for n, row in enumerate(rows[:MOST_EPISODES], start=1)]
    return tuple(each for each in found if each is not None)


def _close_up(row: Mapping[str, Any]) -> CloseUp:
    listed = items(row["tokens"])
    return CloseUp(
        rollout=int(real(row.get("rollout", 0))),
        prompt=turns(row.get("prompt")),
        finished=bool(row.get("finished", True)),
        score=real(row["score"]),
        terms={str(name): real(value) for name, value in mapping(row["terms"]).items()},
        tokens=tuple(_token(mapping(each)) for each in listed[:MOST_TOKENS]),
        left_out=max(0, len(listed) - MOST_TOKENS),
    )


def _token(row: Mapping[str, Any]) -> Token:
    text = row["text"]
    if not isinstance(text, str):
        raise ValueError(f"{shortened(text)} is not a text")
    return Token(text, {name: real(row[name]) for name in _NUMBERS})


def microscope_of(stage: str, close_ups: Sequence[CloseUp]) -> Microscope | None:
    """What the page shows of a stage's close-ups; None where it has none."""
    if not close_ups:
        return None
    tokens = [token for each in close_ups for token in each.tokens]
    scales = [Scale(m, _limit(abs(token.numbers[m.name]) for token in tokens)) for m in MEASURES]
    rollouts = sorted({each.rollout for each in close_ups})
    which = f"rollout {rollouts[0]}" if len(rollouts) == 1 else f"rollouts {rollouts[0]} to {rollouts[-1]}"
    rule = f"{len(close_ups)} {'episode' if len(close_ups) == 1 else 'episodes'} of {which}"
    if len(close_ups) > 1:
        rule += ", spread from the best score to the worst"
    return Microscope(stage, rule, scales, [_episode(each, scales) for each in close_ups])


def _limit(sizes: Iterable[float]) -> float:
    """Where the strongest shade begins: a few outliers do not make all the others pale."""
    ordered = sorted(sizes)
    return ordered[math.ceil(_SHARE * len(ordered)) - 1] if ordered else 0.0


def _episode(close_up: CloseUp, scales: Sequence[Scale]) -> Episode:
    terms = [(_TERMS.get(name, name.replace("_", " ")), value) for name, value in _ordered(close_up.terms)]
    count = len(close_up.tokens) + close_up.left_out
    facts = [f"raw score {_written(close_up.score)}", f"{count} {'token' if count == 1 else 'tokens'}"]
    if not close_up.left_out:
        facts.append(f"KL {_written(sum(token.numbers['kl'] for token in close_up.tokens))} nats")
    return Episode(
        prompt=close_up.prompt,
        tokens=[_shown(token, scales) for token in close_up.tokens],
        facts=facts,
        finished=close_up.finished,
        terms=[(what, _written(value)) for what, value in terms],
        # Of what is shown: a reader who adds up the rows finds no other sum.
        reward=_written(sum(round(value, _DIGITS) for _, value in terms)),
        left_out=close_up.left_out,
    )


def _ordered(terms: Mapping[str, float]) -> list[tuple[str, float]]:
    names = [name for name in _ORDER if name in terms]
    names += sorted(name for name in terms if name not in (*_ORDER, "kl"))
    return [(name, terms[name]) for name in (*names, *(["kl"] if "kl" in terms else []))]


def _shown(token: Token, scales: Sequence[Scale]) -> Shown:
    return Shown(
        parts=segments(visible(token.text)),
        classes=" ".join(scale.shade(token.numbers[scale.measure.name]) for scale in scales),
        title=" · ".join(f"{_TITLES[name]} {_written(token.numbers[name])}" for name in _NUMBERS),
    )


def visible(text: str) -> str:
    """A token's text with symbols for what has no ink: line ends, tabs, blanks that stand alone, and nothing at all."""
    if text.strip(" ") == "":
        return "␣" * len(text) or _EMPTY
    return re.sub("[\n\t\r]", lambda found: _SYMBOLS[found.group()], text)


def _written(value: float) -> str:
    return fixed(value, _DIGITS) if abs(value) < 1e6 else number(value)
