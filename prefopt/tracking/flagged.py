"""Rows of samples as a person reads them in a table: the words that cost, in place of where they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

COLUMN = "flagged"
MOST_TEXTS = 8
"""Different texts of one cost in a cell."""
LONGEST_TEXT = 60
"""Characters of one; what is longer loses its middle."""


def readable(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """The rows with a column `flagged` in place of `spans`, whose numbers only a program can follow.

    Args:
        rows: Lines of `samples.jsonl`; those of a stage without costs stay as they are.
    """
    return [_readable(row) for row in rows]


def flagged(completion: str, costs: Mapping[str, float], spans: Mapping[str, Sequence[Sequence[int]]]) -> str:
    r"""What a completion costs, and the words that cost it: `banned: "red lamp" ×2, "guarantee" (1.0); length (0.3)`.

    Line ends, control and direction characters are written as Python writes them (`\n`, `\u202e`), so that a cell is
    one line and nothing in it turns its neighbours around.

    Args:
        completion: The text.
        costs: Amounts by the name of the cost; those of 0 are left out.
        spans: Characters from the first to behind the last, by the name of the cost; what is outside the text is cut.
    """
    said = []
    for name, amount in costs.items():
        if amount:
            texts = _texts(completion, spans.get(name, ()))
            said.append(f"{name}{': ' if texts else ''}{texts} ({float(f'{amount:.3g}')})")
    return "; ".join(said)


def _readable(row: Mapping[str, object]) -> dict[str, object]:
    costs, spans = row.get("costs"), row.get("spans")
    if not isinstance(costs, Mapping) or not isinstance(spans, Mapping):
        return dict(row)
    said = flagged(str(row.get("completion", "")), costs, spans)
    return {**{name: value for name, value in row.items() if name != "spans"}, COLUMN: said}


def _texts(completion: str, spans: Sequence[Sequence[int]]) -> str:
    """The flagged texts in quotes, each once, with how often it occurs."""
    counted = Counter(completion[max(0, start) : max(0, end)] for start, end in spans)
    found = [(text, count) for text, count in counted.items() if text]
    shown = [f"{_quoted(text)}{f' ×{count}' if count > 1 else ''}" for text, count in found[:MOST_TEXTS]]
    return ", ".join(shown) + (f" and {len(found) - MOST_TEXTS} more" if len(found) > MOST_TEXTS else "")


def _quoted(text: str) -> str:
    half = LONGEST_TEXT // 2
    short = text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[-half:]}"
    return '"' + "".join(map(_written, short)) + '"'


def _written(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
