"""Where a completion's tokens are in its text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


def token_offsets(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], text: str) -> list[int]:
    """The character of `text` that each token begins at, in time linear in their number.

    A token that holds a part of a character begins where that does.

    Args:
        tokenizer: That decoded them.
        token_ids: T tokens, special ones among them.
        text: Decoded without special tokens, and possibly cut at a stop string.

    Returns:
        T places, never falling, at most the length of the text; empty where the tokens are not those of the text.
    """
    pieces = _pieces(tokenizer, token_ids)
    starts, length = [], 0
    for piece in pieces:
        starts.append(min(length, len(text)))
        length += len(piece)
    whole = "".join(pieces)
    return starts if whole.startswith(text) or text.startswith(whole) else []


def _pieces(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    if not tokenizer.is_fast:
        return [tokenizer.decode([token], skip_special_tokens=True) for token in token_ids]
    stream = DecodeStream(skip_special_tokens=True)
    return [stream.step(tokenizer.backend_tokenizer, token) or "" for token in token_ids]
