"""Strict YAML: the text of a recipe becomes a tree of plain values that knows the line of every key.

YAML 1.2 rules for plain values: only `true` and `false` are booleans (`no`, `on` and `yes` stay text) and `1e-5` is a
number. A number with a leading zero is refused, because YAML 1.1 reads `010` as 8 and YAML 1.2 as 10. Duplicate keys,
tags, a second document, and files that would expand beyond bounds are refused with their line.

PyYAML's parser gives the events; the tree is built here, because its composer neither counts the nodes that aliases
expand to nor bounds the depth, and its constructor lets duplicate keys win in silence.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import Problem, RecipeError
from prefopt.recipe.words import syntax_words

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_NUMBER_CHARACTERS = 40

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_ZERO_LED = re.compile(r"[-+]?0[0-9]+")
_HEX_OR_OCTAL = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
# libyaml parses a megabyte in milliseconds; the parser in pure Python needs many seconds for it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def dotted(path: KeyPath) -> str:
    """`("stages", "dpo", "data", 0)` as `stages.dpo.data[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass
class Places:
    """Where each key of a tree was written.

    Attributes:
        file: The recipe as the user named it.
        lines: Line of each key or list item, from 1.
        origins: Keys that came from somewhere else, such as `--set a.b=c`.
    """

    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line` of a key, or of the nearest key above it that is known."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
            if path[:end] in self.lines:
                return f"{self.file}:{self.lines[path[:end]]}"
        return self.file

    def line(self, path: KeyPath) -> int:
        """The line for sorting; 0 for the file itself, and keys of `--set` come last."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return MAX_BYTES + 1
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 0

    def problem(self, path: KeyPath, message: str, remedy: str = "") -> Problem:
        """A problem at a key."""
        return Problem(self.where(path), dotted(path), message, remedy)


@dataclass(frozen=True)
class Document:
    """A parsed recipe.

    Attributes:
        tree: Plain dicts, lists and values; what was refused is left out, or kept as text.
        places: The line of every key.
        problems: What is wrong as YAML.
        complete: Whether the whole text was read; otherwise the tree must not be judged further.
    """

    tree: dict[str, Any]
    places: Places
    problems: tuple[tuple[KeyPath, Problem], ...]
    complete: bool


def read_text(path: Path) -> str:
    """The text of a recipe file, without its byte order mark.

    Raises:
        RecipeError: The file cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refused(str(path), *_cannot_read(path, error)) from None
    if len(data) > MAX_BYTES:
        raise _refused(
            str(path), "the file is larger than 1 MB, so it is no recipe", "data belongs in files of its own"
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _refused(str(path), "the file is UTF-16", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"the file is not UTF-8: byte 0x{data[error.start]:02x} cannot be read"
        raise _refused(f"{path}:{line}", message, "save it as UTF-8") from None


def _cannot_read(path: Path, error: OSError) -> tuple[str, str]:
    if isinstance(error, FileNotFoundError):
        return "there is no such file", "`prefopt recipes` lists recipes to start from"
    if isinstance(error, IsADirectoryError):
        return "this is a folder, and a recipe is a YAML file", ""
    return f"the file cannot be read: {error.strerror or error}", ""


def _refused(where: str, message: str, remedy: str = "") -> RecipeError:
    return RecipeError([Problem(where, "", message, remedy)])


def parse(text: str, file: str) -> Document:
    """Read the text of a recipe; never raises for what a user can write.

    Args:
        text: The whole file.
        file: Its name in messages.
    """
    builder = _Builder(Places(file), text)
    tree: object = {}
    complete = True
    try:
        tree = builder.document()
    except _StopError:
        complete = False
    if complete and not isinstance(tree, dict):
        what = "empty" if tree is None else f"{_kind_of(tree)}, not a mapping"
        builder.note((), None, f"the recipe is {what}", "`prefopt new NAME` gives one to start from")
        complete = False
    problems = tuple(builder.problems)
    return Document(tree if isinstance(tree, dict) else {}, builder.places, problems, complete)


def parse_value(text: str) -> object:
    """One YAML value, as in `--set key=value`.

    Raises:
        ValueError: The text is no YAML value; the message says why.
    """
    builder = _Builder(Places("value"), text)
    try:
        value = builder.document()
    except _StopError:
        value = None
    if builder.problems:
        raise ValueError(builder.problems[0][1].message)
    return value


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else "a single value"


class _StopError(Exception):
    """Reading cannot go on; the problem is noted."""


@dataclass(frozen=True)
class _Anchored:
    """What an anchor stands for; `nodes` is 0 while it is still being read."""

    value: object
    nodes: int
    height: int


class _Builder:
    """Turns parser events into a tree, counting every node that aliases expand to."""

    def __init__(self, places: Places, text: str) -> None:
        self.places = places
        self.problems: list[tuple[KeyPath, Problem]] = []
        self._text = text
        self._nodes = 0
        self._deepest = 0
        self._anchors: dict[str, _Anchored] = {}
        self._events: Iterator[Any] = iter(())

    def document(self) -> object:
        """The only document of the text; None where there is none."""
        self._events = self._guarded()
        self._next()  # start of the stream
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._node(self._next(), (), 0)
        self._next()  # end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self.stop((), event.start_mark.line + 1, "a second YAML document starts here", "a recipe is one document")
        return value

    def note(self, path: KeyPath, line: int | None, message: str, remedy: str = "") -> None:
        """Add a problem and go on."""
        where = self.places.file if line is None else f"{self.places.file}:{line}"
        self.problems.append((path, Problem(where, dotted(path), message, remedy)))

    def stop(self, path: KeyPath, line: int, message: str, remedy: str = "") -> None:
        """Add a problem and give up."""
        self.note(path, line, message, remedy)
        raise _StopError

    def _next(self) -> Any:
        return next(self._events)

    def _guarded(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self._text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            self.stop((), line, *syntax_words(error, self._text, line))
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, _first_control(self._text)) + 1
            self.stop((), line, f"a character that YAML does not allow ({error.reason})", "delete it")

    def _node(self, event: Any, path: KeyPath, depth: int) -> object:
        line = event.start_mark.line + 1
        self._count(1, depth, path, line)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, depth, line)
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self.note(path, line, f"the tag {event.tag!r} is not allowed", "a recipe is data: leave the tag out")
        before, outer_deepest, self._deepest = self._nodes, self._deepest, depth
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(None, 0, 0)
        value: object
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(path, depth)
        else:
            value = self._mapping(path, depth)
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(value, self._nodes - before + 1, self._deepest - depth)
        self._deepest = max(outer_deepest, self._deepest)
        return value

    def _count(self, nodes: int, depth: int, path: KeyPath, line: int) -> None:
        self._nodes += nodes
        self._deepest = max(self._deepest, depth)
        if self._nodes > MAX_NODES:
            self.stop(
                path[:4], line, f"the recipe expands to more than {MAX_NODES} values", "aliases multiply what they name"
            )
        if depth > MAX_DEPTH:
            self.stop(path[:4], line, f"the recipe is nested deeper than {MAX_DEPTH} levels")

    def _alias(self, event: Any, path: KeyPath, depth: int, line: int) -> object:
        anchored = self._anchors.get(event.anchor)
        if anchored is None or anchored.nodes == 0:
            what = "is not defined above this line" if anchored is None else "contains itself"
            self.note(path, line, f"the anchor '{event.anchor}' {what}", "text that starts with * needs quotes")
            return None
        self._count(anchored.nodes, depth + anchored.height, path, line)
        return copy.deepcopy(anchored.value)

    def _sequence(self, path: KeyPath, depth: int) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            here = (*path, len(items))
            self.places.lines[here] = event.start_mark.line + 1
            items.append(self._node(event, here, depth + 1))
        return items

    def _mapping(self, path: KeyPath, depth: int) -> dict[str, object]:
        result: dict[str, object] = {}
        merged: list[tuple[object, int]] = []
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            key = self._key(event, path, depth)
            here = (*path, key)
            if key == "<<":
                merged.append((self._node(self._next(), here, depth + 1), line))
            elif key in result:
                first = self.places.lines[here]
                self.note(here, line, f"the key is written twice, first in line {first}", "delete one of the two")
                self._discard(here, depth + 1)
            else:
                self.places.lines[here] = line
                result[key] = self._node(self._next(), here, depth + 1)
        for value, line in merged:
            self._merge(result, value, path, line)
        return result

    def _discard(self, path: KeyPath, depth: int) -> None:
        """Read a value without letting it change the lines of the one that was kept."""
        lines = dict(self.places.lines)
        self._node(self._next(), path, depth)
        self.places.lines = lines

    def _key(self, event: Any, path: KeyPath, depth: int) -> str:
        line = event.start_mark.line + 1
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, path, depth + 1)
            self.note(path, line, "a key must be text", 'text that starts with {, [ or * needs quotes, as in "${VAR}"')
            return f"<key in line {line}>"
        self._count(1, depth, path, line)
        return str(event.value)

    def _merge(self, result: dict[str, object], value: object, path: KeyPath, line: int) -> None:
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                self.note((*path, "<<"), line, "'<<' merges mappings", "as in `<<: *name`")
                continue
            for key, item in source.items():
                if key not in result:
                    result[key] = copy.deepcopy(item)
                    self.places.lines[(*path, key)] = line

    def _scalar(self, event: Any, path: KeyPath, line: int) -> object:
        text = str(event.value)
        plain = event.implicit[0] and event.tag is None
        if not plain:
            return text
        if text in _SPECIAL:
            return _SPECIAL[text]
        number = _INT.fullmatch(text) or _FLOAT.fullmatch(text) or _HEX_OR_OCTAL.fullmatch(text)
        if number and len(text) > MAX_NUMBER_CHARACTERS:
            self.note(path, line, f"a number of {len(text)} characters", "put it in quotes if it is text")
            return text
        if _ZERO_LED.fullmatch(text):
            plain_number = text[0].strip("0123456789") + (text.lstrip("+-0") or "0")
            remedy = f"write {plain_number}, or '{text}' in quotes if it is text"
            self.note(path, line, f"{text} starts with a zero, which some programs read as octal", remedy)
            return text
        if _INT.fullmatch(text):
            return int(text)
        if _HEX_OR_OCTAL.fullmatch(text):
            return int(text, 0)
        return float(text) if number else text


def _first_control(text: str) -> int:
    found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    return found.start() if found else 0
