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


def held_out(keys: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """Chooses the keys of one data set that are held out.

    A key is held out if its position is below the fraction. Of two or more keys at least one is held out and at least
    one is not, whatever their positions; a single key, or a fraction of 0, holds out nothing.

    Args:
        keys: Identities of prompts; repetitions do not matter.
        fraction: Share to hold out, in [0, 1).
        seed: The recipe's seed, the same for every stage.
    """
    positions = {key: position(key, seed) for key in keys}
    if fraction <= 0 or len(positions) < 2:
        return frozenset()
    ranked = sorted(positions, key=lambda key: (positions[key], key))
    chosen = sum(value < fraction for value in positions.values())
    return frozenset(ranked[: min(max(chosen, 1), len(ranked) - 1)])
