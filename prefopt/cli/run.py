"""`prefopt run RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prefopt.pipeline.seeds import SeedsSummary
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
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder, else runs/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and why; write nothing.")] = False,
    seeds: Annotated[
        int,
        typer.Option("--seeds", metavar="N", min=1, help="Run with N seeds, and compare the policies over them all."),
    ] = 1,
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
    from prefopt.pipeline.seeds import run_seeds
    from prefopt.pipeline.summary import RunOptions
    from prefopt.recipe.load import load
    from prefopt.tracking.progress import Display

    options = RunOptions(
        out=out,
        only=tuple(only or ()),
        start_from=start_from,
        dry_run=dry_run,
        allow_inexact_resume=allow_inexact_resume,
        trust_remote_code=trust_remote_code,
    )
    loaded = load(recipe, overrides or ())
    with Display(quiet=as_json) as display:
        found = run_seeds(loaded, options, display, seeds)
    runs = list(found.runs.values())
    if as_json:
        print_json(runs[0].to_json() if seeds == 1 else found.to_json())
    else:
        for summary in runs:
            _show(summary)
        if seeds > 1:
            _show_seeds(found)
    for error in found.errors if as_json else found.errors[1:]:
        print_error(error)
    if found.errors and not as_json:
        raise found.errors[0]
    return found.exit_code


def _show_seeds(found: SeedsSummary) -> None:
    from prefopt.cli.compare import show
    from prefopt.cli.output import note, say

    say()
    for line in found.notes:
        note(f"note: {line}")
    if found.comparison is not None:
        show(found.comparison)


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
