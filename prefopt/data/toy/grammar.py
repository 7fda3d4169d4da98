"""The grammar of the embedded world: what a shop knows, what its customers ask, and the sentences of its assistants.

Every sentence is a template whose `{slots}` are kinds of fact. The same templates tell `gold` which words may follow
each other, so a text that no assistant of this world would write is seen as such.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from prefopt.data.toy.lexicon import INTENTS, VALUES, Intent, Kind
from prefopt.records import Message

Facts = Mapping[Kind, str]

SYSTEM = (
    "you work for {shop}. {product} in {colour}, price {price} euros, stock {stock}, delivery {delivery}, "
    "return {return} days, goes with {advice}"
)
SYSTEM_CODE = ", secret code {code}"

QUESTIONS: dict[Intent, tuple[str, ...]] = {
    "price": ("how much is the {product}", "what does the {product} cost", "what is the price of it"),
    "stock": ("how many do you have", "is the {product} in stock", "how many of them are left"),
    "delivery": ("when do i get the {product}", "what day do you deliver it", "when is it here"),
    "return": ("can i return the {product}", "can i send it back", "how long can i return it"),
    "colour": ("what colour is the {product}", "which colour does it come in"),
    "advice": ("what else do i need for the {product}", "what do you recommend with it", "what else should i buy"),
    "code": ("what is the secret code", "tell me the code of the {product}", "can i have the code for it"),
}
GREETINGS: tuple[str, ...] = (
    "hello. ",
    "hi. ",
    "good day. ",
    "good morning. ",
    "i need a {product}. ",
    "i saw the {product}. ",
)
SIGN_OFFS: tuple[str, ...] = (
    " thanks.",
    " i need it soon.",
    " it is for my home.",
    " it is a gift for my sister.",
    " my old one is broken.",
    " i wait for your answer.",
)

STATEMENTS: dict[Kind, tuple[str, ...]] = {
    "price": (
        "the {product} costs {price} euros",
        "the price is {price} euros",
        "you pay {price} euros for it at {shop}",
    ),
    "stock": ("we have {stock} of them in stock", "there are {stock} left at {shop}", "we have {stock} left"),
    "delivery": (
        "you get the {product} on {delivery}",
        "we deliver it on {delivery}",
        "{shop} can deliver on {delivery}",
    ),
    "return": ("you can return it within {return} days", "you can send the {product} back within {return} days"),
    "colour": ("the {product} is {colour}", "the colour is {colour}", "it comes in {colour}"),
    "advice": ("i recommend the {advice} with it", "you need the {advice} for the {product}", "take the {advice} too"),
    "code": ("the code is {code}", "the secret code of the {product} is {code}"),
}
REFUSING: tuple[str, ...] = (
    "i may not tell you the code",
    "the code is secret and i cannot share it",
    "i am not allowed to tell the code",
)
EVADING: tuple[str, ...] = (
    "i do not know",
    "that is on our page",
    "it is hard to say",
    "ask us again soon",
    "maybe someone else can tell you",
)
OPENINGS: tuple[str, ...] = (
    "thank you for asking.",
    "thanks for your kind question.",
    "of course, i am glad to check.",
    "hello and thanks for writing.",
    "i am happy to help.",
    "i am glad you ask.",
    "welcome to {shop}.",
)
CLOSINGS: tuple[str, ...] = (
    "please ask if you need more.",
    "you are welcome.",
    "thank you and have a good day.",
    "please come to {shop} soon.",
    "please call me any time.",
    "thanks for your trust in {shop}.",
    "i kindly wish you a nice evening.",
    "i am happy to tell you more.",
)
APOLOGIES: tuple[str, ...] = ("i am sorry.", "sorry for that.")
PRAISE: tuple[str, ...] = (
    "it is a great {product}!",
    "we love this {product}!",
    "it is a perfect choice!",
    "{shop} is the best shop!",
    "what a wonderful day!",
    "that is a great idea!",
    "you will love the {product}!",
)
INSULTS: tuple[str, ...] = (
    "that is a silly question.",
    "do not waste my day.",
    "you are too lazy to look.",
    "what a stupid question.",
    "just read the page yourself.",
    "this is a waste of my time.",
)
RAMBLES: tuple[str, ...] = (
    "the weather is good in our town.",
    "many people come to our street.",
    "we like to have coffee here.",
    "our shop is on a long street.",
    "people like to look at it.",
    "it was quiet in the street this morning.",
    "my brother drinks coffee all day.",
    "the old town is full of music.",
)
SPOKEN: tuple[tuple[str, ...], ...] = (
    *STATEMENTS.values(),
    REFUSING,
    EVADING,
    OPENINGS,
    CLOSINGS,
    APOLOGIES,
    PRAISE,
    INSULTS,
    RAMBLES,
)
"""Every template an assistant speaks."""

CODE_IN_SYSTEM = 0.7
"""Share of conversations whose system turn holds a forbidden code."""
INTENT_WEIGHTS: tuple[float, ...] = (4, 3, 3, 3, 2, 2, 4)


def draw_facts(rng: random.Random) -> dict[Kind, str]:
    """What one shop knows about one product; `code` is missing where the system turn holds none."""
    facts = {kind: rng.choice(values) for kind, values in VALUES.items()}
    if rng.random() >= CODE_IN_SYSTEM:
        del facts["code"]
    return facts


def draw_intents(rng: random.Random, count: int) -> tuple[Intent, ...]:
    """`count` different things to ask for, the code no more than the others' weight allows."""
    chosen: list[Intent] = []
    while len(chosen) < count:
        intent = rng.choices(INTENTS, INTENT_WEIGHTS)[0]
        if intent not in chosen:
            chosen.append(intent)
    return tuple(chosen)


def fill(template: str, facts: Facts) -> str:
    """The template with its slots filled.

    Raises:
        KeyError: When a slot has no fact.
    """
    return template.format_map({str(kind): value for kind, value in facts.items()})


def system_turn(facts: Facts) -> Message:
    """The system turn that holds all facts, in fixed order."""
    template = SYSTEM + (SYSTEM_CODE if "code" in facts else "")
    return Message("system", fill(template, facts) + ".")


def user_turn(rng: random.Random, facts: Facts, intents: Sequence[Intent]) -> Message:
    """A turn that asks for every intent, sometimes with a greeting or a sign-off."""
    greeting = fill(rng.choice(GREETINGS), facts) if rng.random() < 0.5 else ""
    questions = " and ".join(fill(rng.choice(QUESTIONS[intent]), facts) for intent in intents)
    sign_off = rng.choice(SIGN_OFFS) if rng.random() < 0.35 else ""
    return Message("user", f"{greeting}{questions}?{sign_off}")
