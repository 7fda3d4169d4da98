"""`prefopt check RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as in stages.dpo.beta=0.2.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Judge a recipe without running it: what would run, in order, or every problem in one list."""
    from prefopt.cli.output import named, note, print_json, print_table
    from prefopt.evaluation.gates import check_names
    from prefopt.recipe.load import load
    from prefopt.recipe.references import graph, needs, order

    loaded = load(recipe, overrides or ())
    judged = loaded.recipe
    check_names(judged)
    stages = order(graph(judged))
    if as_json:
        print_json(
            {
                "recipe": str(recipe),
                "name": judged.name,
                "stages": [
                    {"stage": name, "kind": judged.stages[name].kind, "needs": needs(judged, name)} for name in stages
                ],
                "warnings": list(loaded.warnings),
            }
        )
        return
    rows = [(name, judged.stages[name].kind, named(needs(judged, name)) or None) for name in stages]
    title = f"{judged.name}: {len(rows)} stage{'s' if len(rows) > 1 else ''}, in this order"
    print_table(("stage", "kind", "needs"), rows, title=title)
    for warning in loaded.warnings:
        note(f"warning: {warning}")
