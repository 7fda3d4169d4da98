"""The embedded world: conversations of a shop assistant, drawn from a grammar and judged by a known gold reward.

Every row has its own generator, seeded by the table, the seed and the row's number: row i is the same whatever n is,
and the four tables never share one. Nothing is downloaded and nothing is cached.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from prefopt.data.toy import grammar
from prefopt.data.toy.answers import BROAD, FAIR, Style, answer
from prefopt.data.toy.gold import HIGHEST, LOWEST, gold, gold_terms
from prefopt.data.toy.lexicon import FORBIDDEN, Intent, Kind
from prefopt.data.toy.reading import violations
from prefopt.records import Demonstration, Message, PreferencePair, Prompt

__all__ = [
    "FORBIDDEN",
    "HIGHEST",
    "LOWEST",
    "TEMPERATURE",
    "VERSION",
    "corpus",
    "demonstrations",
    "gold",
    "gold_terms",
    "label",
    "preference_probability",
    "preferences",
    "prompts",
    "violations",
]

VERSION = 1
"""Grows when any row or any gold value changes, so that stages made from another world run again."""

TEMPERATURE = 0.5
"""Gold units: people prefer an answer that is better by this much with probability sigmoid(1) = 0.73."""

TURNS = (5, 4, 3)
"""Weights of one, two and three questions in a conversation of the corpus: later ones practise copying from afar."""
SECOND_TURN = 0.15
"""Share of prompts that already hold one answered question."""
TWO_QUESTIONS = 0.15
"""Share of user turns that ask for two things."""
BROAD_SHARE = 0.3
"""Share of compared answers that are as mixed as the corpus; the others are like demonstrations."""


def corpus(n: int, seed: int) -> list[tuple[Message, ...]]:
    """Whole conversations of one to three questions, answered well and badly: what a base model reads.

    Raises:
        ValueError: For a negative `n`.
    """
    return [_conversation(rng) for rng in _generators("corpus", n, seed)]


def prompts(n: int, seed: int) -> list[Prompt]:
    """Conversations that end with the turn to be answered.

    Raises:
        ValueError: For a negative `n`.
    """
    return [_draw_prompt(rng)[0] for rng in _generators("prompts", n, seed)]


def demonstrations(n: int, seed: int) -> list[Demonstration]:
    """Fair answers, far from the best: an SFT policy that imitates them keeps room above itself.

    Raises:
        ValueError: For a negative `n`.
    """
    rows = []
    for index, rng in enumerate(_generators("demonstrations", n, seed)):
        prompt, facts, intents = _draw_prompt(rng)
        text = answer(rng, facts, intents, FAIR)
        rows.append(Demonstration(prompt, text, source="toy", id=f"toy-demonstrations-{seed}-{index}"))
    return rows


def preferences(n: int, seed: int, noise: float = 0.0, *, with_gold: bool = False) -> list[PreferencePair]:
    """Pairs of answers to one prompt, labelled by people who follow gold at `TEMPERATURE` and err with `noise`.

    Args:
        n: Number of pairs.
        seed: Of the table.
        noise: Share of labels that are flipped after they were drawn. Prompts and answers do not depend on it.
        with_gold: For analysis: sets `margin` to gold(chosen) - gold(rejected), negative where the label is wrong,
            and both values in `extra`. Without it a row holds nothing but what an annotator would see and say.

    Raises:
        ValueError: For a negative `n` or a noise outside [0, 0.5].
    """
    _check_noise(noise)
    return [
        _pair(rng, f"toy-preferences-{seed}-{index}", noise, with_gold)
        for index, rng in enumerate(_generators("preferences", n, seed))
    ]


def preference_probability(prompt: Prompt, a: str, b: str, noise: float = 0.0) -> float:
    """P(a is preferred to b), by Bradley-Terry on gold / `TEMPERATURE`, then flipped with probability `noise`.

    Raises:
        ValueError: For a noise outside [0, 0.5].
    """
    _check_noise(noise)
    gap = (gold(prompt, a) - gold(prompt, b)) / TEMPERATURE
    return noise + (1 - 2 * noise) / (1 + math.exp(-gap))


def label(prompt: Prompt, a: str, b: str, rng: random.Random, noise: float = 0.0) -> bool:
    """One person's verdict: whether `a` is preferred to `b`. Takes exactly two numbers from `rng`.

    Raises:
        ValueError: For a noise outside [0, 0.5].
    """
    _check_noise(noise)
    prefers_a = rng.random() < preference_probability(prompt, a, b)
    flipped = rng.random() < noise
    return prefers_a != flipped


def _check_noise(noise: float) -> None:
    if not 0.0 <= noise <= 0.5:
        raise ValueError(f"noise must be in [0, 0.5], not {noise}: above it, labels say the opposite of gold")


def _generators(table: str, n: int, seed: int) -> Iterator[random.Random]:
    if n < 0:
        raise ValueError(f"number of rows must not be negative, not {n}")
    return (random.Random(f"toy/{VERSION}/{table}/{seed}/{index}") for index in range(n))


def _draw_turn(rng: random.Random, facts: dict[Kind, str]) -> tuple[Message, tuple[Intent, ...]]:
    intents = grammar.draw_intents(rng, 2 if rng.random() < TWO_QUESTIONS else 1)
    return grammar.user_turn(rng, facts, intents), intents


def _draw_prompt(rng: random.Random) -> tuple[Prompt, dict[Kind, str], tuple[Intent, ...]]:
    facts = grammar.draw_facts(rng)
    messages = [grammar.system_turn(facts)]
    if rng.random() < SECOND_TURN:
        messages += _exchange(rng, facts, FAIR)
    turn, intents = _draw_turn(rng, facts)
    return (*messages, turn), facts, intents


def _exchange(rng: random.Random, facts: dict[Kind, str], style: Style) -> list[Message]:
    turn, intents = _draw_turn(rng, facts)
    return [turn, Message("assistant", answer(rng, facts, intents, style))]


def _conversation(rng: random.Random) -> tuple[Message, ...]:
    facts = grammar.draw_facts(rng)
    messages = [grammar.system_turn(facts)]
    for _ in range(rng.choices((1, 2, 3), TURNS)[0]):
        messages += _exchange(rng, facts, BROAD)
    return tuple(messages)


def _pair(rng: random.Random, row_id: str, noise: float, with_gold: bool) -> PreferencePair:
    prompt, facts, intents = _draw_prompt(rng)

    def draw() -> str:
        return answer(rng, facts, intents, BROAD if rng.random() < BROAD_SHARE else FAIR)

    chosen = rejected = draw()
    while rejected == chosen:
        rejected = draw()
    if not label(prompt, chosen, rejected, rng, noise):
        chosen, rejected = rejected, chosen
    if not with_gold:
        return PreferencePair(prompt, chosen, rejected, source="toy", id=row_id)
    values = {"gold_chosen": gold(prompt, chosen), "gold_rejected": gold(prompt, rejected)}
    margin = values["gold_chosen"] - values["gold_rejected"]
    return PreferencePair(prompt, chosen, rejected, margin=margin, source="toy", id=row_id, extra=values)
