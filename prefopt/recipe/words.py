"""The words for what is wrong: YAML's and pydantic's errors, as a person would say them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import yaml

from prefopt.recipe.foreign import VALUE_ALIASES

_SYNTAX: tuple[tuple[str, str, str], ...] = (
    ("mapping values are not allowed", "a second ':' in one line, or a line indented too far",
     "a value that contains ': ' needs quotes"),
    ("cannot start any token", "a value starts with a sign that YAML keeps for itself", "put it in quotes"),
    ("expected ',' or ']'", "a list that starts with [ is not closed", "close it with ]"),
    ("expected ',' or '}'", "a mapping that starts with { is not closed", "close it; text with braces needs quotes"),
    ("expected <block end>", "the indentation does not fit the lines above", "align the keys of one mapping"),
    ("did not find expected key", "the indentation does not fit the lines above", "align the keys of one mapping"),
    ("could not find expected ':'", "a key without ': ' after it", "write `key: value`"),
    ("unexpected end of stream", "a quoted text is not closed", "add the closing quote"),
    ("did not find expected alphabetic or numeric character", "a value starts with * or &", "put the value in quotes"),
)  # fmt: skip


def syntax_words(error: yaml.MarkedYAMLError, text: str, line: int) -> tuple[str, str]:
    """What a YAML error means for who wrote the file, and what to do."""
    said = str(error.problem or error.context or "unknown error")
    lines = text.splitlines()
    shown = lines[line - 1] if line <= len(lines) else ""
    if "\t" in shown[: len(shown) - len(shown.lstrip())] or shown.startswith("\t"):
        return "a tab is used for indentation", "YAML takes spaces only"
    for fragment, meaning, remedy in _SYNTAX:
        if fragment in said:
            if "${" in shown and '"${' not in shown and "'${" not in shown:
                remedy = 'put ${…} in quotes, as in "${VAR}/folder"'
            return f"not valid YAML: {meaning}", remedy
    return f"not valid YAML: {said}", ""


def say(value: object) -> str:
    """A value as the user wrote it, short enough for a line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int | float):
        return f"the number {value:g}" if isinstance(value, float) else f"the number {value}"
    text = str(value)
    return f"'{text}'" if len(text) <= 60 else f"'{text[:57]}…'"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a name or a list of names",
    "model_type": "a mapping (lines of `key: value`)",
    "model_attributes_type": "a mapping (lines of `key: value`)",
    "dict_type": "a mapping (lines of `name: …`)",
    "dict_attributes_type": "a mapping (lines of `key: value`)",
    "finite_number": "a finite number",
}
_BOUND = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_YES_NO = {"no": "false", "off": "false", "n": "false", "yes": "true", "on": "true", "y": "true"}


def explain(error: Mapping[str, Any], written: str | None = None) -> tuple[str, str]:
    """A pydantic error as a message and a remedy.

    Args:
        error: One of `ValidationError.errors()`.
        written: The text as written, where `${VAR}` was filled in.
    """
    kind, value = str(error["type"]), error.get("input")
    context = error.get("ctx", {})
    if value is None and (kind in _EXPECTED or kind == "literal_error"):
        return "the key has no value", f"write {_EXPECTED.get(kind, 'one')}, or leave the key out for its default"
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, not {say(value)}", _type_remedy(kind, value, written)
    if kind in _BOUND:
        name, word = _BOUND[kind]
        return f"must be {word} {context[name]:g}, not {value:g}", ""
    if kind == "literal_error":
        return _choice(value, str(context["expected"]))
    if kind in ("too_short", "string_too_short"):
        return "must not be empty", ""
    if kind == "string_pattern_mismatch":
        return f"{say(value)} is no name", "letters, digits, '_', '-' and '.', at most 64, the first a letter or digit"
    if kind == "value_error":
        return str(context.get("error", error["msg"])), ""
    return str(error["msg"]), ""


def _type_remedy(kind: str, value: object, written: str | None) -> str:
    if written is not None:
        return f"{written} always gives text; use --set for a number or a switch" if kind != "string_type" else ""
    if kind == "bool_type" and isinstance(value, str) and value.lower() in _YES_NO:
        return f"write {_YES_NO[value.lower()]}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return _number_remedy(value)
    if kind in ("model_type", "dict_type") and isinstance(value, list):
        return "no dashes: one `name: {…}` each"
    return ""


def _number_remedy(text: str) -> str:
    bare = re.sub(r"(?<=\d)[_,'](?=\d)", "", text.strip())
    if re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", bare):
        return f"write {bare}, without quotes" if bare == text.strip() else f"write {bare}"
    return ""


def _choice(value: object, expected: str) -> tuple[str, str]:
    choices = re.findall(r"'([^']*)'", expected)
    listed = ", ".join(choices)
    if not isinstance(value, str):
        return f"must be one of {listed}, not {say(value)}", "put it in quotes" if str(value) in choices else ""
    alias = VALUE_ALIASES.get(value.lower())
    near = [alias] if alias in choices else get_close_matches(value.lower(), choices, n=1, cutoff=0.6)
    return f"must be one of {listed}, not {say(value)}", f"did you mean '{near[0]}'?" if near else ""
