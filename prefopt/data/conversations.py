"""The cells of a row, read with their types checked, and conversations taken apart into prompt and answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, overload

from prefopt.data.sources import SourceRow
from prefopt.errors import DataError
from prefopt.records import ROLES, Message, Prompt, SampledTokens

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Cells:
    """One row with typed access; every complaint names row, column, what was expected and what was found.

    Args:
        row: The row, columns renamed.
        format_name: How the row is read, for messages.
        kinds: Whether a column holds text or message lists, as the rows before this one showed; shared between rows.
    """

    def __init__(self, row: SourceRow, format_name: str, kinds: dict[str, str]) -> None:
        self._row = row
        self._format = format_name
        self._kinds = kinds

    def error(self, column: str, expected: str) -> DataError:
        """A `DataError` for a column of this row."""
        return DataError(
            f"{self._row.where}: column '{column}': expected {expected}",
            f"read as format '{self._format}'; columns seen: {', '.join(self._row.row)}",
        )

    def text(self, column: str) -> str:
        """The text of a column."""
        value = self.text_or_messages(column)
        if not isinstance(value, str):
            raise self.error(column, "text, found a list")
        return value

    def text_or_messages(self, column: str) -> str | list[Any]:
        """The value of a column that may hold either, the same in all rows."""
        value = self._row.row.get(column)
        if value is None:
            raise self.error(column, "a value, found null" if column in self._row.row else "the column, it is missing")
        if not isinstance(value, str | list):
            raise self.error(column, f"text or a list of messages, found {type(value).__name__}")
        kind = "text" if isinstance(value, str) else "a list of messages"
        before = self._kinds.setdefault(column, kind)
        if kind != before:
            raise self.error(column, f"{before} as in the rows before, found {kind}")
        return value

    def same_kind(self, first: str, second: str) -> tuple[str | list[Any], str | list[Any]]:
        """Two columns that hold text both, or message lists both."""
        left, right = self.text_or_messages(first), self.text_or_messages(second)
        if isinstance(left, str) != isinstance(right, str):
            raise self.error(second, f"{self._kinds[first]} as in '{first}', found {self._kinds[second]}")
        return left, right

    def messages(self, column: str) -> Prompt:
        """A conversation; may be empty."""
        value = self.text_or_messages(column)
        if isinstance(value, str):
            raise self.error(column, "a list of messages, found text")
        found = tuple(self._message(column, index, item) for index, item in enumerate(value))
        for index, message in enumerate(found):
            if message.role == "system" and index > 0:
                raise self.error(column, f"a system message first only, found one as message {index + 1}")
        return found

    def prompt(self, column: str) -> Prompt:
        """A prompt: text is one user turn, or the turns of an HH transcript; a list ends with the user's turn."""
        value = self.text_or_messages(column)
        if isinstance(value, str):
            if is_transcript(value) and value.rstrip().endswith(ASSISTANT):
                return parse_transcript(value.rstrip().removesuffix(ASSISTANT))
            return (Message("user", value),)
        messages = self.messages(column)
        if messages and messages[-1].role != "user":
            raise self.error(column, f"a last turn by the user, found one by '{messages[-1].role}'")
        return messages

    def answer(self, column: str, prompt: Prompt) -> tuple[Prompt, str]:
        """Prompt and answer of a message list that holds the answer alone, or the prompt's conversation before it."""
        messages = self.messages(column)
        if not messages:
            return prompt, ""
        *before, last = messages
        if last.role != "assistant":
            raise self.error(column, f"a last turn by the assistant, found one by '{last.role}'")
        if not before:
            return prompt, last.content
        # Data sets that repeat the conversation may have its first question alone as the prompt.
        repeats = tuple(before) == prompt
        asks = [message.content for message in before if message.role == "user"]
        if not repeats and not (len(prompt) == 1 and asks and prompt[0].content in (asks[0], asks[-1])):
            raise self.error(column, "the assistant's answer alone, or the prompt's turns and the answer")
        return tuple(before), last.content

    @overload
    def number(self, column: str, default: float, low: float = ..., high: float = ...) -> float: ...
    @overload
    def number(self, column: str, default: None, low: float = ..., high: float = ...) -> float | None: ...
    def number(
        self, column: str, default: float | None, low: float = -math.inf, high: float = math.inf
    ) -> float | None:
        """An optional number within bounds; null and an empty CSV cell mean the default."""
        value = self._row.row.get(column)
        if value is None or value == "":
            return default
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not (math.isfinite(found) and low <= found <= high):
            bounds = (
                f" from {low:g} to {high:g}" if math.isfinite(high) else f" of at least {low:g}" * math.isfinite(low)
            )
            raise self.error(column, f"a finite number{bounds}, found {value!r:.40}")
        return found

    def label(self, column: str) -> str:
        """An optional name: text or a whole number."""
        value = self._row.row.get(column)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(column, f"text or a whole number, found {type(value).__name__}")
        return str(value)

    def has(self, column: str) -> bool:
        """Whether a column holds something."""
        return self._row.row.get(column) not in (None, "")

    def choice(self, column: str, count: int) -> int:
        """A whole number from 0 to `count - 1`."""
        found = self.number(column, None, 0, count - 1)
        if found is None or found != int(found):
            raise self.error(column, f"a whole number from 0 to {count - 1}, found {self._row.row.get(column)!r:.40}")
        return int(found)

    def flag(self, column: str) -> bool:
        """True or false, also as 1 or 0 and as text."""
        found = as_flag(self._row.row.get(column))
        if found is None:
            raise self.error(column, f"true or false, found {self._row.row.get(column)!r:.40}")
        return found

    def shares(self, column: str) -> dict[str, float]:
        """An optional mapping of names to numbers in [0, 1]; in CSV it is JSON. Names without a number are left out."""
        value = self._mapping(column, "a mapping of names to numbers")
        if value is None:
            return {}
        inner = Cells(
            SourceRow(self._row.number, dict(value), f"{self._row.where}: column '{column}'"), self._format, {}
        )
        found = {str(name): inner.number(name, None, 0.0, 1.0) for name in value}
        return {name: share for name, share in found.items() if share is not None}

    def sampled(self, column: str) -> SampledTokens | None:
        """How a policy wrote a completion, as `collect` says it; in CSV it is JSON."""
        value = self._mapping(column, "a mapping with 'finished' and 'text'")
        if value is None:
            return None
        finished, text = value.get("finished"), value.get("text")
        ids, context = value.get("ids") or (), value.get("context") or ""
        if not isinstance(finished, bool) or not isinstance(text, str) or not isinstance(context, str):
            raise self.error(column, f"true or false as 'finished', text as 'text' and 'context', found {value!r:.60}")
        if not isinstance(ids, list | tuple) or any(type(each) is not int or each < 0 for each in ids):
            raise self.error(column, f"a list of token ids as 'ids', found {ids!r:.40}")
        return SampledTokens(finished, text, tuple(ids), context)

    def _mapping(self, column: str, expected: str) -> Mapping[str, Any] | None:
        value = self._row.row.get(column)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            with suppress(ValueError):  # what is no JSON is refused below, as it was found
                value = json.loads(value)
        if value is None or value == "":
            return None
        if not isinstance(value, Mapping):
            raise self.error(column, f"{expected}, found {value!r:.40}")
        return value

    def extra(self, *interpreted: str) -> dict[str, object]:
        """The other columns that hold something."""
        return {name: value for name, value in self._row.row.items() if name not in interpreted and value is not None}

    def _message(self, column: str, index: int, item: object) -> Message:
        if type(item) is dict and len(item) == 2 and item.get("role") in ROLES and type(item.get("content")) is str:
            return Message(item["role"], item["content"])  # as almost all
        place = f"message {index + 1}"
        if not isinstance(item, Mapping) or not {"role", "content"} <= item.keys():
            raise self.error(column, f"{{'role', 'content'}} as {place}, found {item!r:.60}")
        role, content = item["role"], item["content"]
        if role not in ROLES:
            raise self.error(column, f"role {', '.join(ROLES)} in {place}, found {role!r:.40}")
        if not isinstance(content, str):
            raise self.error(column, f"text as content of {place}, found {type(content).__name__}")
        return Message(role, content)


def as_flag(value: object) -> bool | None:
    """What says true or false, as JSON, CSV and numbers do; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def is_transcript(value: object) -> bool:
    """Whether a value is an HH transcript: turns of `Human:` and `Assistant:`, each after an empty line."""
    if not isinstance(value, str):
        return False
    text = value.lstrip()
    return text.startswith(HUMAN.strip()) and ASSISTANT in text


def split_transcript(cells: Cells, column: str, text: str) -> tuple[str, str]:
    """The transcript before the marker of its last answer, and that answer without the space around it.

    The last marker counts, so an answer may quote `Human:` or `Assistant:` inside a line.

    Raises:
        DataError: If there is no such marker.
    """
    before, marker, answer = text.rpartition(ASSISTANT)
    if not marker:
        raise cells.error(column, "a transcript with '\\n\\nAssistant:'")
    return before, answer.strip()


def parse_transcript(text: str) -> Prompt:
    """The turns of a transcript, without the space around them; text before the first turn is a system message."""
    start = text.lstrip()
    before, *turns = _TURN.split("\n\n" + start if start.startswith(HUMAN.strip()) else text)
    system = [Message("system", before.strip())] if before.strip() else []
    said = zip(turns[::2], turns[1::2], strict=True)
    return (*system, *(Message("user" if who == "Human" else "assistant", what.strip()) for who, what in said))


def split_texts(cells: Cells, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Prompt and two answers of texts that begin alike; the prompt ends with a whole word, and no character is lost.

    Raises:
        DataError: If the texts share no word at their beginning.
    """
    differ = (index for index, (ours, theirs) in enumerate(zip(chosen, rejected, strict=False)) if ours != theirs)
    shared = chosen[: next(differ, min(len(chosen), len(rejected)))]
    end = re.search(r"\s+\S*$", shared)
    prompt = shared[: end.start()] if end else ""
    if not prompt.strip():
        raise cells.error(
            "rejected", "a text that begins as 'chosen' does, or a 'prompt' beside them: the two share no word"
        )
    return (Message("user", prompt),), chosen[len(prompt) :], rejected[len(prompt) :]
