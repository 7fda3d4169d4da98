"""`prefopt run RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prefopt.pipeline.summary import RunSummary


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as in stages.dpo.beta=0.2.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="STAGE", help="Run only this stage; what it reads is done.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Run this stage and all after it, even when they are done."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder.  [runs/NAME]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and why; write nothing.")] = False,
    seeds: Annotated[str | None, typer.Option("--seeds", hidden=True)] = None,
    allow_inexact_resume: Annotated[
        bool,
        typer.Option(
            "--allow-inexact-resume", help="Reserved: only checkpoints that verify are used, so every resume is exact."
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model's repository, where the recipe agrees.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Run what is not done yet, in order; the same command resumes. Answers the exit code."""
    from prefopt.cli.output import print_error, print_json
    from prefopt.errors import InputError
    from prefopt.pipeline.runner import run_recipe
    from prefopt.pipeline.summary import RunOptions
    from prefopt.recipe.load import load
    from prefopt.tracking.progress import Display

    if seeds is not None:
        raise InputError("'--seeds' is not in this version", "run again with --set seed=N --out DIR for every seed")
    options = RunOptions(
        out=out,
        only=tuple(only or ()),
        start_from=start_from,
        dry_run=dry_run,
        allow_inexact_resume=allow_inexact_resume,
        trust_remote_code=trust_remote_code,
    )
    with Display(quiet=as_json) as display:
        summary = run_recipe(load(recipe, overrides or ()), options, display)
    if as_json:
        print_json(summary.to_json())
        for error in summary.errors:
            print_error(error)
        return summary.exit_code
    _show(summary)
    for error in summary.errors[1:]:
        print_error(error)
    if summary.errors:
        raise summary.errors[0]
    return 0


def _show(summary: RunSummary) -> None:
    from prefopt.cli.output import print_table, say
    from prefopt.tracking.progress import duration

    rows = [
        (outcome.stage, outcome.kind, outcome.state, duration(outcome.seconds) if outcome.seconds else None,
         outcome.headline or None)
        for outcome in summary.stages
    ]  # fmt: skip
    print_table(("stage", "kind", "state", "time", ""), rows, title=f"{summary.name}: {summary.directory}")
    for outcome in summary.stages:
        if outcome.state in ("done", "skipped") and outcome.directory is not None:
            _show_table(outcome.stage, outcome.directory)
    if summary.report is not None:
        say(f"report: {summary.report}")


def _show_table(stage: str, directory: Path) -> None:
    from prefopt.cli.output import print_table, say
    from prefopt.store.files import read_json

    path = directory / "table.json"
    if path.is_file():
        table = read_json(path)
        say()
        print_table(table["columns"], table["rows"], title=stage)
