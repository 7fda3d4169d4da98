"""What completions look like, whatever they are worth: variety and repetition."""

from __future__ import annotations

from collections.abc import Sequence


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Runs of n words, in order."""
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams among all n-grams of all texts (arXiv 1510.03055); 0 where there is none.

    Falls with the number of texts, so only sets of equal size compare.
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else 0.0


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams that occurred in it before (arXiv 1908.04319, seq-rep-n); 0 for a short text."""
    found = ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else 0.0
