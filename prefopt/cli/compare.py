"""`prefopt compare RUN…`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prefopt.evaluation.compare import Comparison

_RUNS_HELP = "runs/NAME for every policy that it evaluated, or runs/NAME:POLICY."
_REFERENCE_HELP = "Compare with this label of the table; by default the baseline of one run, the first of several."


def command(
    runs: Annotated[list[str], typer.Argument(help=_RUNS_HELP, metavar="RUN", show_default=False)],
    stage: Annotated[
        str | None,
        typer.Option("--stage", metavar="NAME", help="The evaluate stage; the last that is done by default."),
    ] = None,
    reference: Annotated[str | None, typer.Option("--reference", metavar="LABEL", help=_REFERENCE_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Say which of several policies scores higher on the same prompts, by how much, and how sure that is."""
    from prefopt.cli.output import note, print_json
    from prefopt.pipeline.comparison import compare_runs

    comparison, notes = compare_runs(runs, stage, reference)
    if as_json:
        print_json({**comparison.to_json(), "notes": notes})
        return
    for line in notes:
        note(f"note: {line}")
    show(comparison)


def show(comparison: Comparison) -> None:
    """Print the table and the verdicts."""
    from prefopt.cli.output import harmless, print_table, say

    columns, rows = comparison.table()
    kept = f"{comparison.prompts} prompt{'s' if comparison.prompts != 1 else ''}"
    left = f", {comparison.left_out} that not all have left out" if comparison.left_out else ""
    print_table(
        [harmless(column) for column in columns],
        [[harmless(cell) for cell in row] for row in rows],
        title=f"{kept}{left}; 95 % intervals",
    )
    say()
    for verdict in comparison.verdicts:
        say(harmless(f"{verdict}."))
