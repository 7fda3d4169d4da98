"""The command `prefopt`: finds the verb, runs it, and turns errors into a line and an exit code.

Only the verb that was asked for is imported: `prefopt --help` imports neither torch nor pydantic.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer

from prefopt import __version__
from prefopt.cli.output import error_document, print_error, print_json
from prefopt.errors import EnvironmentFault, InputError, Interrupted, PrefoptError

VERBS = {
    "run": "Run what is not done yet, in order; the same command resumes.",
    "check": "Judge a recipe without running it: every problem in one list.",
    "status": "Show the stages of a run, and what the next run would do.",
    "report": "Write report/index.html, one file that opens offline.",
    "new": "Copy a recipe that ships with prefopt, to edit it.",
    "recipes": "List the recipes that ship with prefopt.",
    "compare": "Say which of several policies scores higher, by how much, and how sure that is.",
    "sample": "Let a trained stage answer prompts.",
    "export": "Write a stage as PEFT or transformers alone open it: an adapter, or a merged model.",
    "schema": "Print the JSON Schema of recipes, for editors.",
}
LATER_VERBS = ("audit", "collect", "annotate", "evaluate", "release")
PIPE_CLOSED = 128 + 13  # what a shell reports for a program that SIGPIPE ended

_EPILOG = (
    "Exit codes: 0 done · 2 recipe or data invalid · 3 environment · 4 training diverged · 5 integrity · "
    "6 a gate said no · 75 interrupted, run the same command again.\n\n"
    f"Not in this version: {', '.join(LATER_VERBS)}."
)
# Typer carries its own copy of click in some versions and imports click in others; this is the base of its errors
# about the command line in both.
_UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]


def build_app(verb: str | None = None) -> typer.Typer:
    """The Typer app.

    Args:
        verb: The verb whose module is imported; of the others only the name and the line of help are there.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.callback(epilog=_EPILOG)(_top)
    for name, line in VERBS.items():
        if name == verb:
            app.command(name)(_command(name))
        else:
            app.command(name, help=line)(_unused)
    for name in LATER_VERBS:
        settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
        app.command(name, hidden=True, context_settings=settings)(_later)
    return app


def _top(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; works after a verb, too."),
) -> None:
    """From a base language model and human preferences to an aligned LoRA adapter, with evidence that it is better."""


def _unused() -> None:
    raise AssertionError("a verb is run from its own module")


def _later(context: typer.Context) -> None:
    name = context.info_name
    raise InputError(f"'{name}' is not in this version", "`prefopt --help` lists the commands that are")


def _command(verb: str) -> Callable[..., Any]:
    command: Callable[..., Any] = importlib.import_module(f"prefopt.cli.{verb}").command
    return command


def main() -> NoReturn:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a terminal without Unicode must not turn a message into a crash
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and answer its exit code; nothing but `SystemExit` of other libraries leaves it.

    Args:
        arguments: Without the name of the program.
    """
    debug, arguments = _without_debug(arguments)
    try:
        if "--version" in arguments[:1]:
            print(f"prefopt {__version__}", flush=True)
            return 0
        return _invoke(arguments or ["--help"])
    except BrokenPipeError:
        # Whatever is still buffered would fail again while Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            traceback.print_exc()
        return _report(error, as_json="--json" in arguments, debug=debug)


def _without_debug(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """`--debug` is taken out wherever it stands, so that no verb needs to declare it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return len(kept) < end, [*kept, *arguments[end:]]


def _invoke(arguments: list[str]) -> int:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    group = typer.main.get_command(build_app(verb))
    try:
        with group.make_context("prefopt", arguments) as context:
            answer = group.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return answer if isinstance(answer, int) else 0


def _report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    known = _as_prefopt_error(error)
    if known is None:
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        remedy = "" if debug else "the same command with --debug shows where"
        known = PrefoptError(f"this is a fault of prefopt: {message}", remedy)
    if as_json:
        print_json(error_document(known))
    else:
        print_error(known)
    return known.exit_code


def _as_prefopt_error(error: BaseException) -> PrefoptError | None:
    if isinstance(error, PrefoptError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted("interrupted", "the same command goes on from here")
    if isinstance(error, _UsageProblem):
        return _usage_error(error)
    if isinstance(error, MemoryError):
        return EnvironmentFault("out of memory")
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        remedy = "free some space, then run the same command again" if error.errno == errno.ENOSPC else ""
        return EnvironmentFault(f"{error.strerror or error}{where}", remedy)
    return None


def _usage_error(error: Exception) -> InputError:
    say: Callable[[], str] = getattr(error, "format_message", error.__str__)
    context = getattr(error, "ctx", None)
    program = getattr(context, "command_path", "prefopt")
    message = say().rstrip(".")
    recipe = next((word for word in message.split("'") if word.endswith((".yaml", ".yml"))), None)
    if message.startswith("No such command") and recipe:
        return InputError(message, f"did you mean `prefopt run {recipe}`?")
    if message.endswith("?"):
        return InputError(message)
    return InputError(f"{program}: {message}", f"see `{program} --help`")
