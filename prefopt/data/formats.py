"""Rows of any accepted format to canonical items, through one table: `FORMATS`.

Two kinds of trouble are kept apart. A row that is *wrong* (a column missing, null or of another type, a role that does
not exist) means that the data set is not what the recipe thinks: `DataError`, with row and column. A row that is right
but *useless* (an empty answer, two equal answers) is left out and counted under a `Reason`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain, islice
from typing import Any

from prefopt.data import conversations
from prefopt.data.conversations import Cells
from prefopt.data.sources import SourceRow
from prefopt.errors import DataError
from prefopt.records import Demonstration, PreferencePair, Prompt, Unpaired

Item = PreferencePair | Unpaired | Demonstration | Prompt | str
ROWS_LOOKED_AT = 16


class Reason(Enum):
    """Why a row was left out; the values are the keys of the report."""

    EMPTY_PROMPT = "empty_prompt"
    EMPTY_COMPLETION = "empty_completion"
    EMPTY_TEXT = "empty_text"
    EQUAL = "chosen_equals_rejected"
    DIVERGES = "turns_differ_before_the_last"
    NO_ANSWER = "no_answer"
    TIE = "tie"
    MARKED_BAD = "marked_bad"
    DUPLICATE = "exact_duplicate"
    HELD_OUT = "prompt_held_out_by_another_data_set"


class RowDropped(Exception):  # noqa: N818 - not an error: the row is counted and left out
    """A row that cannot be used, for a reason that is counted."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Format:
    """How rows of one format are recognised and read.

    Attributes:
        columns: What it needs, for messages.
        detects: Whether a row, columns renamed, is of this format.
        converts: Reads one row; raises `RowDropped` or `DataError`.
        refines: Format that every such row has as well, and that is not meant where both will do.
    """

    name: str
    columns: str
    detects: Callable[[Mapping[str, Any]], bool]
    converts: Callable[[Cells], Item]
    refines: str = ""


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read: white space, control and invisible format characters only."""
    if text[:1].isalnum():  # as almost all
        return False
    return not any(unicodedata.category(character) not in _BLANK for character in text)


_BLANK = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


# ---- converters ------------------------------------------------------------------------------------------------------


def _checked_prompt(prompt: Prompt) -> Prompt:
    if all(is_blank(message.content) for message in prompt):
        raise RowDropped(Reason.EMPTY_PROMPT)
    return prompt


def _pair(cells: Cells, prompt: Prompt, chosen: str, rejected: str) -> PreferencePair:
    _checked_prompt(prompt)
    if is_blank(chosen) or is_blank(rejected):
        raise RowDropped(Reason.EMPTY_COMPLETION)
    if chosen.strip() == rejected.strip():
        raise RowDropped(Reason.EQUAL)
    ratings = cells.number("score_chosen", None), cells.number("score_rejected", None)
    first, second = ratings
    rated = None if first is None or second is None else first - second
    return PreferencePair(
        prompt,
        chosen,
        rejected,
        probability=cells.number("probability", 1.0, low=0.0, high=1.0),
        margin=rated if (margin := cells.number("margin", None)) is None else margin,
        weight=cells.number("weight", 1.0, low=0.0),
        source=cells.label("source"),
        annotator=cells.label("annotator"),
        id=cells.label("id"),
        extra=cells.extra(*_OF_PAIRS),
        score_chosen=first,
        score_rejected=second,
        axes=cells.shares("axes"),
        sampled_chosen=cells.sampled("sampled_chosen"),
        sampled_rejected=cells.sampled("sampled_rejected"),
    )


_OF_PAIRS = (
    *("prompt", "chosen", "rejected", "probability", "margin", "weight", "source", "annotator", "id"),
    *("score_chosen", "score_rejected", "axes", "sampled_chosen", "sampled_rejected"),
)


def _demonstration(cells: Cells, prompt: Prompt, completion: str) -> Demonstration:
    _checked_prompt(prompt)
    if is_blank(completion):
        raise RowDropped(Reason.EMPTY_COMPLETION)
    return Demonstration(
        prompt,
        completion,
        weight=cells.number("weight", 1.0, low=0.0),
        source=cells.label("source"),
        id=cells.label("id"),
        extra=cells.extra("prompt", "completion", "messages", "weight", "source", "id"),
    )


def _preference(cells: Cells) -> Item:
    chosen, rejected = cells.same_kind("chosen", "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _pair(cells, cells.prompt("prompt"), chosen, rejected)
    prompt = cells.prompt("prompt")
    before_chosen, first = cells.answer("chosen", prompt)
    before_rejected, second = cells.answer("rejected", prompt)
    if before_chosen != before_rejected:
        raise RowDropped(Reason.DIVERGES)
    return _pair(cells, before_chosen, first, second)


def _implicit(cells: Cells) -> Item:
    chosen, rejected = cells.same_kind("chosen", "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen.strip() == rejected.strip():
            raise RowDropped(Reason.EMPTY_COMPLETION if is_blank(chosen) else Reason.EQUAL)
        prompt, first, second = conversations.split_texts(cells, chosen, rejected)
        return _pair(cells, prompt, first, second)
    ours, theirs = cells.messages("chosen"), cells.messages("rejected")
    if not ours or not theirs:
        raise RowDropped(Reason.EMPTY_COMPLETION)
    if ours == theirs:
        raise RowDropped(Reason.EQUAL)
    if ours[0] != theirs[0]:
        raise cells.error("rejected", "a conversation that begins as 'chosen' does: the two share no turn")
    for column, messages in (("chosen", ours), ("rejected", theirs)):
        if messages[-1].role != "assistant":
            raise cells.error(column, f"a last turn by the assistant, found one by '{messages[-1].role}'")
    if ours[:-1] != theirs[:-1]:
        raise RowDropped(Reason.DIVERGES)
    return _pair(cells, ours[:-1], ours[-1].content, theirs[-1].content)


def _hh(cells: Cells) -> Item:
    chosen, rejected = cells.text("chosen"), cells.text("rejected")
    before, first = conversations.split_transcript(cells, "chosen", chosen)
    before_rejected, second = conversations.split_transcript(cells, "rejected", rejected)
    if before != before_rejected:
        raise RowDropped(Reason.DIVERGES)
    return _pair(cells, conversations.parse_transcript(before), first, second)


def _saferlhf(cells: Cells) -> Item:
    """The better answer is chosen; which is safer is a label on the axis `safe` (arXiv 2310.12773)."""
    better = cells.choice("better_response_id", 2)
    pair = _pair(cells, cells.prompt("prompt"), cells.text(f"response_{better}"), cells.text(f"response_{1 - better}"))
    safer = {"safe": float(cells.choice("safer_response_id", 2) == better)} if cells.has("safer_response_id") else {}
    read = ("response_0", "response_1", "better_response_id", "safer_response_id")
    extra = {name: value for name, value in pair.extra.items() if name not in read}
    return replace(pair, axes={**safer, **pair.axes}, extra=extra)


def _messages(cells: Cells) -> Item:
    messages = cells.messages("messages")
    if not messages or messages[-1].role != "assistant":
        return _checked_prompt(messages)
    return _demonstration(cells, messages[:-1], messages[-1].content)


def _prompt_completion(cells: Cells) -> Item:
    prompt = cells.prompt("prompt")
    if isinstance(cells.text_or_messages("completion"), str):
        return _demonstration(cells, prompt, cells.text("completion"))
    before, completion = cells.answer("completion", prompt)
    return _demonstration(cells, before, completion)


def _unpaired(cells: Cells) -> Item:
    demonstration = _prompt_completion(cells)
    assert isinstance(demonstration, Demonstration)  # as its format has it
    extra = {name: value for name, value in demonstration.extra.items() if name != "label"}
    return Unpaired(
        demonstration.prompt,
        demonstration.completion,
        cells.flag("label"),
        weight=demonstration.weight,
        source=demonstration.source,
        id=demonstration.id,
        extra=extra,
    )


def _text(cells: Cells) -> Item:
    text = cells.text("text")
    if is_blank(text):
        raise RowDropped(Reason.EMPTY_TEXT)
    return text


def _prompt(cells: Cells) -> Item:
    return _checked_prompt(cells.prompt("prompt"))


# ---- the table -------------------------------------------------------------------------------------------------------


def _has(*columns: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(column in row for column in columns)


def _is_transcript_pair(row: Mapping[str, Any]) -> bool:
    return all(conversations.is_transcript(row.get(column)) for column in ("chosen", "rejected"))


def _is_implicit_pair(row: Mapping[str, Any]) -> bool:
    values = [row.get("chosen"), row.get("rejected")]
    present = all(isinstance(value, str | list) for value in values)
    return present and "prompt" not in row and not _is_transcript_pair(row)


def _is_marked(row: Mapping[str, Any]) -> bool:
    return {"prompt", "completion"} <= row.keys() and conversations.as_flag(row.get("label")) is not None


def _is_prompt_alone(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and not {"chosen", "rejected", "completion", "better_response_id"} & row.keys()


_SAFERLHF = ("prompt", "response_0", "response_1", "better_response_id")
FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        Format("preference", "prompt, chosen, rejected", _has("prompt", "chosen", "rejected"), _preference),
        Format("hh", "chosen, rejected as '\\n\\nHuman: … \\n\\nAssistant: …'", _is_transcript_pair, _hh),
        Format("implicit", "chosen, rejected without prompt", _is_implicit_pair, _implicit),
        Format("saferlhf", ", ".join(_SAFERLHF), _has(*_SAFERLHF), _saferlhf),
        Format("prompt_completion", "prompt, completion", _has("prompt", "completion"), _prompt_completion),
        Format("unpaired", "prompt, completion, label", _is_marked, _unpaired, refines="prompt_completion"),
        Format("messages", "messages", _has("messages"), _messages),
        Format("text", "text", _has("text"), _text),
        Format("prompt", "prompt", _is_prompt_alone, _prompt),
    )
}
PAIRS = ("preference", "hh", "implicit", "saferlhf")
DEMONSTRATIONS = (*PAIRS, "prompt_completion", "unpaired", "messages")
UNPAIRED = (*PAIRS, "unpaired")
PROMPTS = (*DEMONSTRATIONS, "prompt")
TEXTS = (*DEMONSTRATIONS, "text")

COLUMNS = frozenset(
    "prompt chosen rejected completion label messages text probability margin weight source annotator id score_chosen "
    "score_rejected axes sampled_chosen sampled_rejected response_0 response_1 better_response_id "
    "safer_response_id".split()
)


def rename(rows: Iterable[SourceRow], columns: Mapping[str, str]) -> Iterator[SourceRow]:
    """Gives columns their canonical names; a mapped column hides another of the same name.

    Args:
        rows: Rows as the source has them.
        columns: Canonical column: column of the source.

    Raises:
        DataError: If the mapping names a column that is not canonical, or that a row lacks.
    """
    unknown = sorted(set(columns) - COLUMNS)
    if unknown:
        raise DataError(f"columns: '{unknown[0]}' is not a canonical column", f"known: {', '.join(sorted(COLUMNS))}")
    if not columns:
        yield from rows
        return
    for row in rows:
        for canonical, source in columns.items():
            if source not in row.row:
                raise DataError(
                    f"{row.where}: no column '{source}', which `columns` maps to '{canonical}'",
                    f"columns seen: {_seen(row)}",
                )
        kept = {name: value for name, value in row.row.items() if name not in columns.values()}
        renamed = kept | {canonical: row.row[source] for canonical, source in columns.items()}
        yield SourceRow(row.number, renamed, row.where)


def detect(rows: Sequence[SourceRow], wanted: Sequence[str], *, first_match: bool = False) -> Format:
    """Finds the format from the first row that tells.

    Args:
        rows: The first rows, columns renamed; at least one.
        wanted: Names of the formats that the caller can use.
        first_match: Take the first of several that fit; otherwise that is an error.

    Raises:
        DataError: If none fits, or several do.
    """
    for row in rows:
        fitting = [FORMATS[name] for name in wanted if FORMATS[name].detects(row.row)]
        refined = {item.refines for item in fitting}
        fitting = [item for item in fitting if item.name not in refined]
        if len(fitting) == 1 or (fitting and first_match):
            return fitting[0]
        if fitting:
            names = " and ".join(item.name for item in fitting)
            raise DataError(
                f"{row.where}: the row fits the formats {names}; columns seen: {_seen(row)}", "set `format` to one"
            )
    needs = "; ".join(f"{name} ({FORMATS[name].columns})" for name in wanted)
    raise DataError(
        f"{rows[0].where}: the row fits none of the formats {needs}; columns seen: {_seen(rows[0])}",
        "map the columns with `columns: {canonical: yours}`, or set `format`",
    )


def choose(rows: Iterable[SourceRow], name: str, wanted: Sequence[str]) -> tuple[Format, Iterator[SourceRow]]:
    """Takes the format by name, or finds it; returns it with all rows, those looked at included.

    Raises:
        DataError: If the format cannot be found, or has not what the caller wants.
    """
    if name != "auto":
        if name not in wanted:
            raise DataError(f"format '{name}' cannot be used here", f"one of: {', '.join(wanted)}")
        return FORMATS[name], iter(rows)
    rest = iter(rows)
    first = list(islice(rest, ROWS_LOOKED_AT))
    # Without rows nothing is converted, and the caller reports that none are usable.
    found = detect(first, wanted) if first else FORMATS[wanted[0]]
    return found, chain(first, rest)


def convert(
    rows: Iterable[SourceRow], item_format: Format, dropped: Callable[[Reason], None]
) -> Iterator[tuple[SourceRow, Item]]:
    """Reads rows of one format; calls `dropped` for each that is left out.

    Raises:
        DataError: With row and column, for a row that is not of the format, or mixes text and message lists where the
            rows before it did not.
    """
    kinds: dict[str, str] = {}
    for row in rows:
        cells = Cells(row, item_format.name, kinds)
        try:
            yield row, item_format.converts(cells)
        except RowDropped as drop:
            dropped(drop.reason)


def _seen(row: SourceRow) -> str:
    return ", ".join(row.row) or "none"
