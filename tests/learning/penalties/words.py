"""The words that earned a policy most sentiment.

usage: python -m tests.learning.penalties.words SAMPLES POLICY [COUNT]

SAMPLES is an evaluation's `samples.jsonl`, POLICY one of its policies. Prints word, share of completions that say
it, and what it earned a completion.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.learning.penalties.reading import lexicon

_WORD = re.compile(r"[a-z']+")  # as the scorer finds them


def earned(texts: Sequence[str], valences: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Word, share of texts with it, and mean valence that it brought a text; what brought most comes first."""
    said, within = Counter[str](), Counter[str]()
    for text in texts:
        found = _WORD.findall(text.lower())
        said.update(found)
        within.update(set(found))
    count = len(texts)
    rows = [(word, within[word] / count, times * valences.get(word, 0.0) / count) for word, times in said.items()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def without(text: str, valences: Mapping[str, float], banned: Sequence[str]) -> float:
    """Sum of the valences of a text's words, of which those that are banned count nothing."""
    return sum(valences.get(word, 0.0) for word in _WORD.findall(text.lower()) if word not in banned)


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    texts = [row["completion"] for row in rows if row["policy"] == sys.argv[2]]
    for word, share, worth in earned(texts, lexicon())[: int((*sys.argv, "5")[3])]:
        print(f"{word:12} {share:6.1%} {worth:6.2f}")


if __name__ == "__main__":
    main()
