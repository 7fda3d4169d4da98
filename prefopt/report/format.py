"""Numbers and texts as a person reads them, and foreign text made harmless without changing it."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.tracking.progress import duration

_THIN = "\u2009"
_MINUS = "\u2212"
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_FLOPS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP")

# What is invisible and changes how its neighbours look (directions, joins left alone), or what HTML cannot carry.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_REPLACEMENT = "\ufffd"


def decimals(values: Iterable[float]) -> int:
    """Digits after the point that suit a column of values."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 100:
        return 0
    if largest >= 10:
        return 1
    return 2 if largest >= 0.1 else 3


def fixed(value: float, digits: int) -> str:
    """A number with that many decimals, thousands set apart, and a real minus sign."""
    text = f"{value:,.{digits}f}".replace(",", _THIN)
    if text.strip("-0.") == "":
        text = text.lstrip("-")
    return text.replace("-", _MINUS)


def number(value: float) -> str:
    """A lone number, to about four digits."""
    if value == int(value) and abs(value) < 1e15:
        return fixed(value, 0)
    if abs(value) < 1e-3 or abs(value) >= 1e7:
        return f"{value:.2e}".replace("-", _MINUS)
    return fixed(value, 1 if abs(value) >= 1000 else 2 if abs(value) >= 10 else 3)


def quantity(name: str, value: object) -> str:
    """A value with the unit that its name ends in: seconds, bytes, flops, or none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name.endswith("seconds"):
        return duration(float(value))
    if name.endswith("bytes"):
        return _scaled(float(value), 1024, _BYTES)
    if name.endswith("flops"):
        return _scaled(float(value), 1000, _FLOPS)
    return number(float(value))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    unit = 0
    while abs(value) >= base and unit < len(units) - 1:
        value /= base
        unit += 1
    return f"{value:.0f} {units[unit]}" if unit == 0 else f"{value:.1f} {units[unit]}"


def money(value: float, currency: str, digits: int = 2) -> str:
    """An amount with its currency."""
    return f"{fixed(value, digits)} {currency}".rstrip()


def flatten(value: Any, prefix: str = "") -> list[tuple[str, object]]:
    """Nested mappings as (label, value) in their own order; lists of plain values become one text."""
    if isinstance(value, Mapping):
        rows = []
        for name, item in value.items():
            rows += flatten(item, f"{prefix} › {label(str(name))}" if prefix else label(str(name)))
        return rows
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping) for item in value):
            return [row for i, item in enumerate(value, start=1) for row in flatten(item, f"{prefix} {i}")]
        return [(prefix, ", ".join(str(item) for item in value) or "none")]
    return [(prefix, "none" if value is None else value)]


_WORDS = {
    "rows_read": "rows read",
    "kept_train": "kept for training",
    "kept_eval": "kept, held out",
    "flops": "compute",
}


def label(name: str) -> str:
    """A key of a record as words; the value carries its own unit."""
    words = _WORDS.get(name) or name.replace("_", " ")
    return re.sub(r" seconds$", " time", re.sub(r" bytes$", " memory", words))


LabelledSpan = tuple[int, int, str]
"""First character, the one behind the last, and what it is."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a foreign text.

    It is `text`, a `mark` (forbidden, or what costs, as `label` says), or a `control` character, named in `label`.
    """

    kind: str
    text: str
    label: str = ""


def segments(text: str, marked: Sequence[str] = (), spans: Sequence[LabelledSpan] = ()) -> list[Segment]:
    """Cuts a foreign text for showing it verbatim.

    Control characters (directions, zero widths, NUL) stand alone, so that the page can isolate them and give their
    code: a right-to-left override then turns nothing around. What HTML cannot carry is replaced by U+FFFD.

    Args:
        text: The text.
        marked: Strings to highlight wherever they occur.
        spans: Places to highlight, with what stands at them; where they overlap, all of it does.
    """
    pieces = _pieces(text, spans)
    if len(pieces) > 1 or (pieces and pieces[0][1]):
        return [segment for piece, label in pieces for segment in _under(segments(piece, marked), label)]
    found: list[Segment] = []
    # A code is found in any case, and with a blank or nothing where it has a hyphen.
    ordered = sorted(set(marked), key=lambda word: (-len(word), word))
    words = [re.escape(word).replace(r"\-", r"[-\s]?") for word in ordered if word]
    pattern = re.compile(f"({_CONTROL.pattern})" + (f"|({'|'.join(words)})" if words else ""), re.IGNORECASE)
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            found.append(Segment("text", text[end : match.start()]))
        if match.group(1) is not None:
            found.append(_control(match.group(1)))
        else:
            found.append(Segment("mark", match.group(0)))
        end = match.end()
    if end < len(text):
        found.append(Segment("text", text[end:]))
    return found


def _pieces(text: str, spans: Sequence[LabelledSpan]) -> list[tuple[str, str]]:
    """The text cut at the ends of spans, each piece with the names of the spans that it is in."""
    known = [(max(0, start), min(end, len(text)), label) for start, end, label in spans if start < end]
    cuts = sorted({0, len(text), *(place for start, end, _ in known for place in (start, end) if start < end)})
    return [
        (text[start:end], ", ".join(dict.fromkeys(label for low, high, label in known if low <= start and end <= high)))
        for start, end in itertools.pairwise(cuts)
    ]


def _under(found: Sequence[Segment], label: str) -> list[Segment]:
    """Text as a mark with a label; control characters stay alone."""
    return [Segment("mark", each.text, label) if label and each.kind != "control" else each for each in found]


def _control(character: str) -> Segment:
    code = f"U+{ord(character):04X}"
    # HTML keeps format characters; of the others it keeps none reliably.
    kept = character if unicodedata.category(character) == "Cf" else _REPLACEMENT
    return Segment("control", kept, code)


def turns(prompt: object) -> list[tuple[str, list[Segment]]]:
    """(role, text) of a prompt, which is messages or plain text."""
    if not isinstance(prompt, list):
        return [("", segments(str(prompt)))]
    said = [turn if isinstance(turn, dict) else {"content": turn} for turn in prompt]
    return [(str(turn.get("role", "")), segments(str(turn.get("content", "")))) for turn in said]
