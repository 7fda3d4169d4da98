"""Prompts that a person types, pipes in, or keeps in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.data.conversations import Cells
from prefopt.data.formats import is_blank
from prefopt.data.sources import SourceRow, read_rows
from prefopt.errors import DataError, EnvironmentFault, InputError
from prefopt.recipe.schema import DataSpec
from prefopt.records import Message, Prompt

_READ_AS = "prompt"


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """A prompt, and where it stands: `file, line 3`."""

    where: str
    prompt: Prompt


def text_prompt(text: str, where: str, system: str | None = None) -> NamedPrompt:
    """A text as a prompt: one user turn, or the turns of an HH transcript that ends with `Assistant:`.

    Args:
        text: What is asked.
        where: How messages name it.
        system: A system turn to put before it.

    Raises:
        DataError: When it is blank or not Unicode.
    """
    return _prompt(SourceRow(1, {"prompt": text}, where), system)


def lines_prompts(content: bytes, source: str, system: str | None = None) -> list[NamedPrompt]:
    """One prompt per line of UTF-8 text; blank lines are left out. Arguments and errors as `text_prompt`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 ({error})", "convert it, e.g. with iconv -t UTF-8") from error
    # str.splitlines would also cut at characters that may stand inside a line.
    lines = enumerate((line.rstrip("\r") for line in text.split("\n")), start=1)
    return [text_prompt(line, f"{source}, line {number}", system) for number, line in lines if not is_blank(line)]


def file_prompts(path: Path, system: str | None = None) -> list[NamedPrompt]:
    """The prompts of a file: `.txt`, one per line, or `.jsonl` with `{"prompt": text or messages}` and whatever else.

    Raises:
        InputError: When there is no such file, or it is of another kind.
        DataError: When a row has no prompt, or the file holds none.
        EnvironmentFault: When it cannot be read.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path}: a file of prompts ends in .txt (one a line) or .jsonl")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".txt":
        try:
            found = lines_prompts(path.read_bytes(), str(path), system)
        except OSError as error:
            raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error
    else:
        spec = DataSpec(path=str(path.absolute()))
        found = [_prompt(row, system) for row in read_rows(spec, log=lambda line: None)]
    if not found:
        raise DataError(f"{path}: no prompts in it")
    return found


def row_prompt(columns: Mapping[str, object], where: str) -> Prompt:
    """The prompt of a row that holds `prompt` as text or messages; errors as `text_prompt`."""
    return _prompt(SourceRow(1, dict(columns), where), None).prompt


def _prompt(row: SourceRow, system: str | None) -> NamedPrompt:
    prompt = Cells(row, _READ_AS, {}).prompt("prompt")
    if all(is_blank(message.content) for message in prompt):
        raise DataError(f"{row.where}: the prompt is empty")
    if system is not None:
        if prompt[0].role == "system":
            raise DataError(f"{row.where}: the prompt has a system turn already", "leave out --system, or the turn")
        prompt = (Message("system", system), *prompt)
    _check_unicode(prompt, row.where)
    return NamedPrompt(row.where, prompt)


def _check_unicode(messages: Sequence[Message], where: str) -> None:
    try:
        for message in messages:
            message.content.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: the prompt holds bytes that are not UTF-8") from None
