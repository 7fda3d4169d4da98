"""`prefopt schema`."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Accepted for uniformity: the answer is JSON anyway.")
    ] = False,
) -> None:
    """Print the JSON Schema of recipes: editors complete and check with it.

    With the YAML language server: save it as recipe.schema.json, and write
    `# yaml-language-server: $schema=recipe.schema.json` into a recipe.
    """
    from prefopt.cli.output import print_json
    from prefopt.recipe.schema import Recipe

    document = Recipe.model_json_schema()
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **document})
