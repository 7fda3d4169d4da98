"""`prefopt report DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    directory: Annotated[Path, typer.Argument(help="The folder of a run, such as runs/NAME.", metavar="DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Write report/index.html, one file that opens offline, and its plots as PNG; finished stages or not."""
    from prefopt.cli.output import print_json, say
    from prefopt.report import render

    path = render(directory)
    if as_json:
        print_json({"report": str(path)})
    else:
        say(str(path))
