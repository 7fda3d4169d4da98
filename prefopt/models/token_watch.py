"""How often words are to be expected in a completion, by the policy's own probabilities while it is sampled.

Shape suffixes: B rows, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


class _Last(NamedTuple):
    """Tokens that complete a word: those of a form with a blank before it, and those of one without."""

    spaced: tuple[int, ...]
    bare: tuple[int, ...]


@dataclass(frozen=True)
class _Forms:
    """Token sequences of words, by all of their tokens but the last."""

    last: dict[tuple[int, ...], _Last]
    longest: int


class TokenWatch:
    """Adds up the probability of the tokens that would complete a word, at every step of a completion.

    At step t, with the tokens y_<t already there, it is Σ_w π(w's last token | y_<t) over the forms w whose other
    tokens are the last ones of y_<t. A form without a blank counts only where no word goes on. Summed over t this has
    the expectation of the number of times that the tokens of a word are drawn, and a smaller variance: it does not wait
    for the draw (conditional Monte Carlo). It cannot know what comes after: a longer word that begins with the same
    tokens counts as well, so of what it knows it is an upper bound. It knows the tokens that the tokenizer itself
    writes a word with; `drew` says whether any of those were drawn, so that a word spelt otherwise can be told.

    Args:
        words: Words and phrases; they are looked for in lower case, upper case, with a capital, and as they are.
        tokenizer: Of the policy.
    """

    def __init__(self, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._forms = _forms(words, tokenizer)
        self._ends_in_word: dict[int, bool] = {}
        self._indices: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}

    def masses(self, probabilities: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """What the next token completes a word with, [B].

        Args:
            probabilities: Of the next token, [B, V].
            written: The tokens of each of B completions so far.
        """
        found = torch.zeros(len(probabilities), dtype=probabilities.dtype, device=probabilities.device)
        at_start = self._forms.last.get(())
        if at_start is not None:
            found += self._sum(probabilities, at_start.spaced)
            alone = torch.tensor([not self._goes_on(row) for row in written], device=found.device)
            found += torch.where(alone, self._sum(probabilities, at_start.bare), 0.0)
        for place, row in enumerate(written):
            for tokens in self._completing(row, 1):
                found[place] += self._sum(probabilities[place], tokens)
        return found

    def drew(self, row: Sequence[int]) -> bool:
        """Whether the tokens of a word are in a completion."""
        return any(token in tokens for end, token in enumerate(row) for tokens in self._completing(row[:end], 0))

    def _completing(self, row: Sequence[int], least: int) -> Iterator[tuple[int, ...]]:
        """The tokens that complete words of which a row ends with all tokens but the last, `least` of those or more."""
        for length in range(least, min(self._forms.longest, len(row) + 1)):
            before = len(row) - length
            last = self._forms.last.get(tuple(row[before:]))
            if last is not None:
                yield last.spaced if self._goes_on(row[:before]) else (*last.spaced, *last.bare)

    def _sum(self, probabilities: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """Of the probabilities of some tokens, each once."""
        key = (probabilities.device, tokens)
        if key not in self._indices:
            self._indices[key] = torch.tensor(sorted(set(tokens)), dtype=torch.long, device=probabilities.device)
        return probabilities[..., self._indices[key]].sum(-1)

    def _goes_on(self, row: Sequence[int]) -> bool:
        """Whether a row ends inside a word."""
        if not row:
            return False
        if row[-1] not in self._ends_in_word:
            self._ends_in_word[row[-1]] = self._tokenizer.decode([row[-1]])[-1:].isalnum()
        return self._ends_in_word[row[-1]]


def _forms(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> _Forms:
    spaced, bare = (
        {
            tuple(tokenizer(before + form, add_special_tokens=False)["input_ids"])
            for word in words
            for form in (word, word.lower(), word.upper(), word.capitalize())
        }
        for before in (" ", "")
    )
    bare -= spaced  # tokenizers that put a blank before every text know one form alone
    last: dict[tuple[int, ...], _Last] = {}
    for sequences, name in ((spaced, "spaced"), (bare, "bare")):
        for sequence in sorted(sequences):
            known = last.get(sequence[:-1], _Last((), ()))
            last[sequence[:-1]] = known._replace(**{name: (*getattr(known, name), sequence[-1])})
    return _Forms(last, max(map(len, (*spaced, *bare)), default=0))
