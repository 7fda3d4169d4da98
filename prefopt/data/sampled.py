"""Completions that a policy sampled: when their own token ids are learned from, and not those of their text.

A text has many tokenisations. The one that a policy sampled need not be the one that a tokenizer gives, and where a
completion begins with a space its text has lost it (SentencePiece). So pairs of a policy's own completions carry the
ids; they are used where nothing has changed since: the text, the prompt, the tokenizer and its chat template.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from prefopt.data.control import control_tokens
from prefopt.records import Prompt, SampledTokens
from prefopt.store.files import sha256_json
from prefopt.store.hashing import HashCache
from prefopt.store.ledger import canonical_prompt

_DIGITS = 16  # of a hash in a row: it finds what was changed, and keeps nobody out


class AsSampled:
    """Says of completions whether a tokenizer can take the ids that were sampled.

    Args:
        tokenizer: A Hugging Face tokenizer, with its chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._identity = sha256_json(tokenizer_content(tokenizer))
        self._size = len(tokenizer)
        self._control = frozenset(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))

    def context(self, prompt: Prompt) -> str:
        """`SampledTokens.context` of completions of a prompt."""
        return _short(self._identity + canonical_prompt(prompt))

    def ids(self, prompt: Prompt, text: str, sampled: SampledTokens | None) -> list[int] | None:
        """The ids that were sampled; None where there are none, or they were sampled of something else.

        Ids with a control token before the end are not used either: the text that was judged does not show it, and no
        row is to have one inside an answer. Nor are ids beyond those of the tokenizer, of which a model may have some.
        """
        if sampled is None or not sampled.ids or sampled.text != text_key(text) or max(sampled.ids) >= self._size:
            return None
        inside = sampled.ids[:-1] if sampled.finished else sampled.ids
        if not self._control.isdisjoint(inside):
            return None
        return list(sampled.ids) if sampled.context == self.context(prompt) else None


def is_cut(text: str, sampled: SampledTokens | None) -> bool:
    """Whether a text is a completion that its policy did not end."""
    return sampled is not None and not sampled.finished and sampled.text == text_key(text)


def text_key(text: str) -> str:
    """`SampledTokens.text` of a completion."""
    return _short(text)


def sampled_column(sampled: SampledTokens) -> dict[str, object]:
    """`sampled_chosen` or `sampled_rejected` of a row."""
    known = {"ids": list(sampled.ids), "context": sampled.context} if sampled.ids else {}
    return {"finished": sampled.finished, "text": sampled.text, **known}


def tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """Everything of a tokenizer that decides token ids: what is in its files, and the chat template in use."""
    # A backend forgets the padding of its file at the first call.
    tokenizer("a", add_special_tokens=False, verbose=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        files = hashlib.sha256(backend.to_str().encode("utf-8")).hexdigest()
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = HashCache(None).tree(Path(folder))
    return {
        "class": type(tokenizer).__name__,
        "files": files,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "chat_template": tokenizer.chat_template,
    }


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
