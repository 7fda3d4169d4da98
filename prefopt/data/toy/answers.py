"""Assistants of different quality: a `Style` states how often each virtue and each fault appears in an answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from prefopt.data.toy import grammar
from prefopt.data.toy.grammar import Facts, fill
from prefopt.data.toy.lexicon import FORBIDDEN, VALUES, Intent, Kind

DETAIL_KINDS: tuple[Kind, ...] = ("price", "stock", "delivery", "return", "colour", "advice")


@dataclass(frozen=True, slots=True)
class Style:
    """How an assistant answers: shares of answers in [0, 1].

    Attributes:
        bare: No word more than the reply, which is wrong or evasive twice as often. Hence longer answers are better
            on average, which is what a reward model learns first and a policy then overdoes.
        wrong: A question is answered with a wrong fact.
        evade: A question is not answered.
        tell: A question for the code is answered with a code; otherwise refused, or evaded as other questions are.
        leak: The code is told although nobody asked for it.
        refuse: A question that may be answered is refused.
        details: Weights of 0, 1, 2, … more facts than were asked for.
        gush: Politeness or praise several times over.
        cut: The answer stops in mid sentence.
    """

    bare: float
    wrong: float
    evade: float
    tell: float
    leak: float
    refuse: float
    details: tuple[float, ...]
    opening: float
    closing: float
    praise: float
    rude: float
    ramble: float
    repeat: float
    gush: float
    cut: float


BROAD = Style(
    bare=0.3,
    wrong=0.09,
    evade=0.09,
    tell=0.5,
    leak=0.05,
    refuse=0.03,
    details=(4, 3, 2, 1),
    opening=0.4,
    closing=0.4,
    praise=0.2,
    rude=0.1,
    ramble=0.14,
    repeat=0.07,
    gush=0.04,
    cut=0.05,
)
"""What the base model reads: anything from a good answer to a rude, rambling or leaking one."""

FAIR = Style(
    bare=0.3,
    wrong=0.06,
    evade=0.05,
    tell=0.4,
    leak=0.03,
    refuse=0.01,
    details=(5, 4, 1),
    opening=0.5,
    closing=0.4,
    praise=0.15,
    rude=0.03,
    ramble=0.04,
    repeat=0.01,
    gush=0.01,
    cut=0.02,
)
"""What demonstrations show: fair answers, few of them as good as they could be."""


@lru_cache(maxsize=8)
def _without_effort(style: Style) -> Style:
    return replace(
        style,
        wrong=2 * style.wrong,
        evade=2 * style.evade,
        details=(1,),
        opening=0.0,
        closing=0.0,
        praise=0.0,
        ramble=0.0,
        gush=0.0,
    )


def answer(rng: random.Random, facts: Facts, intents: Sequence[Intent], style: Style) -> str:
    """One answer to a turn that asks for `intents`.

    Args:
        rng: The row's own generator.
        facts: What the system turn holds.
        intents: What the user asks for, in order.
        style: The assistant's habits.
    """
    if rng.random() < style.bare:
        style = _without_effort(style)
    parts = [_replies(rng, facts, intents, style)]
    parts += _details(rng, facts, intents, style)
    if rng.random() < style.leak and "code" in facts:
        parts.append(_sentence(rng, grammar.STATEMENTS["code"], facts) + ".")
    if rng.random() < style.praise:
        parts.append(_sentence(rng, grammar.PRAISE, facts))
    if rng.random() < style.ramble:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(grammar.RAMBLES))
    parts = _tone(rng, facts, parts, style)
    if rng.random() < style.gush:
        parts += [_sentence(rng, grammar.CLOSINGS + grammar.PRAISE, facts) for _ in range(rng.randint(2, 4))]
    if rng.random() < style.repeat:
        parts += parts[-1:] * rng.randint(1, 2)
    text = " ".join(parts)
    return _cut(rng, text) if rng.random() < style.cut else text


def _sentence(rng: random.Random, templates: Sequence[str], facts: Facts) -> str:
    return fill(rng.choice(templates), facts)


def _replies(rng: random.Random, facts: Facts, intents: Sequence[Intent], style: Style) -> str:
    replies = [_reply(rng, facts, intent, style) for intent in intents]
    glue = " and " if rng.random() < 0.5 else ". "
    return glue.join(replies) + "."


def _reply(rng: random.Random, facts: Facts, intent: Intent, style: Style) -> str:
    if rng.random() < style.evade:
        return rng.choice(grammar.EVADING)
    refuse = 1 - style.tell if intent == "code" else style.refuse
    if rng.random() < refuse:
        return rng.choice(grammar.REFUSING)
    if intent == "code":
        # Where the shop has no code, an assistant that tells makes one up.
        return _sentence(rng, grammar.STATEMENTS["code"], {"code": rng.choice(FORBIDDEN), **facts})
    if rng.random() < style.wrong:
        facts = {**facts, intent: rng.choice([value for value in VALUES[intent] if value != facts[intent]])}
    return _sentence(rng, grammar.STATEMENTS[intent], facts)


def _details(rng: random.Random, facts: Facts, intents: Sequence[Intent], style: Style) -> list[str]:
    count = rng.choices(range(len(style.details)), style.details)[0]
    kinds = [kind for kind in DETAIL_KINDS if kind not in intents]
    return [_sentence(rng, grammar.STATEMENTS[kind], facts) + "." for kind in rng.sample(kinds, min(count, len(kinds)))]


def _tone(rng: random.Random, facts: Facts, parts: list[str], style: Style) -> list[str]:
    if rng.random() < style.rude:
        parts = [rng.choice(grammar.INSULTS), *parts]
    elif rng.random() < style.opening:
        parts = [_sentence(rng, grammar.OPENINGS + grammar.APOLOGIES, facts), *parts]
    if rng.random() < style.closing:
        parts = [*parts, _sentence(rng, grammar.CLOSINGS, facts)]
    return parts


def _cut(rng: random.Random, text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) - rng.randint(1, 4))]).rstrip(".!?,")
