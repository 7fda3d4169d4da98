"""`prefopt recipes`."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the recipes that ship with prefopt, with one line each."""
    from prefopt.cli.output import print_json, print_table, say
    from prefopt.recipe.bundled import bundled_recipes

    found = bundled_recipes()
    if as_json:
        print_json(
            {
                "recipes": [
                    {"name": item.name, "description": item.description, "path": str(item.path)} for item in found
                ]
            }
        )
        return
    print_table(("recipe", "what it does"), [(item.name, item.description) for item in found])
    say("\n`prefopt new NAME` copies one here.")
