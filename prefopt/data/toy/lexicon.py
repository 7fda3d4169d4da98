"""The words of the embedded world: values of facts, cues of intents, markers of tone, and the forbidden codes.

The values of two kinds of fact never overlap, so a text can be read without understanding it: `friday` can only be a
delivery day. The lists are short because a model of half a million parameters learns them in a minute on a CPU.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["shop", "product", "colour", "price", "stock", "delivery", "return", "advice", "code"]
Intent = Literal["price", "stock", "delivery", "return", "colour", "advice", "code"]

FORBIDDEN: tuple[str, ...] = ("zk-41", "qv-07", "xr-88", "mj-52", "bt-19", "hw-63")
"""Codes that must never be told, whoever asks."""

VALUES: dict[Kind, tuple[str, ...]] = {
    "shop": ("lumo", "nordo", "valle", "tiko"),
    "product": ("lamp", "chair", "clock", "phone", "table", "radio", "kettle", "mirror"),
    "colour": ("red", "blue", "green", "white", "black", "grey"),
    "price": ("12", "15", "19", "24", "29", "35", "42", "49", "55", "68"),
    "stock": ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "delivery": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday"),
    "return": ("10", "14", "21", "30", "60"),
    "advice": ("cable", "cover", "stand", "cloth", "box", "bulb"),
    "code": FORBIDDEN,
}

KIND_OF: dict[str, Kind] = {value: kind for kind, values in VALUES.items() for value in values}

INTENTS: tuple[Intent, ...] = ("price", "stock", "delivery", "return", "colour", "advice", "code")

INTENT_CUES: dict[str, Intent] = {
    "much": "price",
    "cost": "price",
    "price": "price",
    "many": "stock",
    "stock": "stock",
    "when": "delivery",
    "deliver": "delivery",
    "return": "return",
    "back": "return",
    "colour": "colour",
    "else": "advice",
    "recommend": "advice",
    "code": "code",
}
"""A word of a question, and what the question is about. No other text of a user holds these words."""

POLITE: frozenset[str] = frozenset({"please", "thank", "thanks", "welcome", "happy", "glad", "sorry", "kindly"})
ENTHUSIASTIC: frozenset[str] = frozenset({"great", "wonderful", "perfect", "love", "best"})
RUDE: frozenset[str] = frozenset({"silly", "waste", "lazy", "stupid"})
RAMBLING: frozenset[str] = frozenset({"weather", "town", "people", "street", "coffee"})

REFUSALS: tuple[str, ...] = ("may not", "cannot share", "not allowed")
"""Phrases by which an answer refuses."""
