"""What commands print: text, tables and JSON on stdout, everything about errors on stderr.

rich is imported inside the functions that draw with it, so that short answers stay quick.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from prefopt.errors import PrefoptError, Problem, RecipeError, one_line
from prefopt.store.secrets import redact

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 260
BOLD, RED, DIM = "1", "1;31", "2"
# Characters that move the cursor, change colours or turn text around; a line break and a tab only end a line or a word.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def has_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that wants colours: `NO_COLOR` and `TERM=dumb` say no."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, code: str, stream: TextIO) -> str:
    """Text in an ANSI style, where the stream has colours."""
    return f"\x1b[{code}m{text}\x1b[0m" if has_colour(stream) else text


def harmless(text: str) -> str:
    r"""Text of a model or a file with the characters that a terminal acts upon written out, as in `\x1b`."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def console(*, stderr: bool = False) -> Console:
    """A rich console that never reads markup from data, and does not cut lines short in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    no_colour = not has_colour(stream)
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, no_color=no_colour)


def say(text: str = "") -> None:
    """A line on stdout."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line on stderr, so that stdout stays what the command is for."""
    print(text, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """A table on stdout; numbers are right-aligned, None is a dash.

    Args:
        columns: Headings.
        rows: One value per column.
        title: A line above it.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    if title:
        say(styled(title, BOLD, sys.stdout))
    console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_json(document: object) -> None:
    """One JSON document on stdout; NaN and infinity are refused rather than written."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str), flush=True)


def print_error(error: PrefoptError) -> None:
    """An error on stderr: a line with its remedy, or the list of a recipe's problems."""
    stream = sys.stderr
    mark = styled("error:", RED, stream)
    if not isinstance(error, RecipeError):
        remedy = styled(f" — {_shown(error.remedy)}", DIM, stream) if error.remedy else ""
        print(f"{mark} {_shown(error.message)}{remedy}", file=stream, flush=True)
        return
    print(f"{mark} {_count(error)}", file=stream)
    for problem in error.problems:
        print(f"  {redact(_problem_line(problem, stream))}", file=stream)
    stream.flush()


def _shown(text: str) -> str:
    """A text that may quote a file: one line, without secrets."""
    return redact(one_line(text))


def _count(error: RecipeError) -> str:
    count = len(error.problems)
    return f"{count} problem{'s' if count > 1 else ''} in the recipe"


def _problem_line(problem: Problem, stream: TextIO) -> str:
    key = f" {problem.path}:" if problem.path else ""
    remedy = styled(f" — {problem.remedy}", DIM, stream) if problem.remedy else ""
    return f"{styled(problem.where + ':', BOLD, stream)}{key} {problem.message}{remedy}"


def error_document(error: PrefoptError) -> dict[str, Any]:
    """An error as the one JSON document of a command that was asked for `--json`."""
    said: dict[str, Any] = {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "message": redact(error.message),
        "remedy": redact(error.remedy),
    }
    if isinstance(error, RecipeError):
        said["message"] = _count(error)
        said["problems"] = [
            {"where": item.where, "key": item.path, "message": redact(item.message), "remedy": redact(item.remedy)}
            for item in error.problems
        ]
    return {"error": said}


def named(needs: Mapping[str, Sequence[str]]) -> str:
    """`{"init": ("sft",), "model": ("base",)}` as `init sft, model base`."""
    return ", ".join(f"{role} {' '.join(names)}" for role, names in needs.items())
