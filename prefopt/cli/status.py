"""`prefopt status DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    directory: Annotated[Path, typer.Argument(help="The folder of a run, such as runs/NAME.", metavar="DIR")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every byte of every artefact.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Show the stages of a run, and what the next `prefopt run` would do."""
    from prefopt.cli.output import print_error, print_json, print_table, say
    from prefopt.errors import IntegrityError
    from prefopt.pipeline.status import run_status
    from prefopt.tracking.progress import shown_metrics

    status = run_status(directory, verify=verify)
    damaged = [IntegrityError(stage.damage) for stage in status.stages if stage.damage]
    if as_json:
        print_json(status.to_json())
    else:
        rows = [
            (stage.stage, stage.kind, stage.state, shown_metrics(stage.metrics) or None, stage.next)
            for stage in status.stages
        ]
        print_table(("stage", "kind", "state", "metrics", "next run"), rows, title=f"{status.name}: {directory}")
        if status.holder:
            say(f"running: {status.holder}")
    if not verify:
        return 0
    for error in damaged:
        print_error(error)
    return IntegrityError.exit_code if damaged else 0
