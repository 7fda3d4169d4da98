"""Texts that a tokenizer reads as control tokens, and what people write of them taken apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_MARKERS = ("<|im_start|>", "<|im_end|>")


def control_tokens(tokenizer: Any) -> list[str]:
    """Texts that a tokenizer reads as control tokens, longest first."""
    tokens = {*tokenizer.all_special_tokens, tokenizer.eos_token or ""}
    tokens |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens |= {marker for marker in _MARKERS if marker in str(tokenizer.chat_template)}
    return sorted((token for token in tokens if len(token) > 1), key=lambda token: (-len(token), token))


def control_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the texts."""
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def taken_apart(text: str, control: re.Pattern[str]) -> tuple[str, int]:
    """A text in which control tokens are taken apart by a space, and how many there were."""
    return control.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)
