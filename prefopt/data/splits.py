"""What counts as the same text, and which prompts are held out.

The split is by prompt, not by row: whether a prompt is held out depends on its own text, the seed and the fraction, and
on nothing else in the data. So rows can be added or reordered, and several data sets can share prompts, without a held
out prompt drifting into training.
"""

from __future__ import annotations

import hashlib
import json.encoder
import unicodedata
from collections.abc import Iterable

from prefopt.records import Prompt


def normalise(text: str) -> str:
    """Folds what makes no difference between two texts: compatibility forms, case and white space."""
    if text.isascii():  # has one form, and no case that takes more than a lower one
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def identity(*parts: str) -> str:
    """Sha256 of the normalised parts; the same for texts that count as the same."""
    # What json.dumps would write, without building an encoder for every row.
    content = ", ".join([json.encoder.encode_basestring(normalise(part)) for part in parts])
    return hashlib.sha256(f"[{content}]".encode()).hexdigest()


def prompt_key(prompt: Prompt) -> str:
    """Identity of a prompt: its roles and normalised contents."""
    return identity(*(part for message in prompt for part in (message.role, message.content)))


def position(key: str, seed: int) -> float:
    """Where a key falls in [0, 1): uniform over keys, fixed for a seed."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Share:
    """Which keys of one data set are held out, found while they pass by; none of them is kept.

    A key is held out if its position is below the fraction. Of two or more keys at least one is held out and at least
    one is not, whatever their positions; a single key, or a fraction of 0, holds out nothing.

    Args:
        fraction: Share to hold out, in [0, 1).
    """

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._lowest: tuple[float, str] | None = None
        self._highest: tuple[float, str] | None = None

    def add(self, key: str, position: float) -> bool:
        """Whether the key's position is below the fraction. Repetitions do not matter."""
        ranked = (position, key)
        if self._lowest is None or ranked < self._lowest:
            self._lowest = ranked
        if self._highest is None or ranked > self._highest:
            self._highest = ranked
        return position < self._fraction

    @property
    def also_held_out(self) -> str | None:
        """The one key that is held out though its position is not below the fraction."""
        if self._lowest is None or self._lowest == self._highest or not 0 < self._fraction <= self._lowest[0]:
            return None
        return self._lowest[1]

    @property
    def kept(self) -> str | None:
        """The one key that is not held out though its position is below the fraction."""
        return None if self._highest is None or self._highest[0] >= self._fraction else self._highest[1]


def held_out(keys: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """Chooses the keys of one data set that are held out; see `Share`.

    Args:
        keys: Identities of prompts; repetitions do not matter.
        fraction: Share to hold out, in [0, 1).
        seed: The recipe's seed, the same for every stage.
    """
    share = Share(fraction)
    below = {key for key in keys if share.add(key, position(key, seed))}
    also = share.also_held_out
    return frozenset(key for key in below if key != share.kept) | ({also} if also is not None else set())
