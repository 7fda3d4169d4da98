"""`prefopt new NAME [DIR]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="A recipe that `prefopt recipes` lists.", metavar="NAME")],
    directory: Annotated[
        Path, typer.Argument(help="Where to put it; made if it is not there.", metavar="DIR")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Copy a recipe that ships with prefopt, with the data that lies beside it, to edit it.

    A file that is there is never overwritten.
    """
    from prefopt.cli.output import print_json, say
    from prefopt.errors import InputError
    from prefopt.recipe.bundled import beside, bundled_recipe

    recipe = bundled_recipe(name)
    if directory.suffix in (".yaml", ".yml") or (directory.exists() and not directory.is_dir()):
        raise InputError(f"{directory} is not a folder", f"`prefopt new {name} DIR` writes DIR/{recipe.path.name}")
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / recipe.path.name
    for source in (recipe.path, *beside(recipe.path)):
        copy = directory / source.name
        try:
            with copy.open("xb") as file:
                file.write(source.read_bytes())
        except FileExistsError:
            raise InputError(f"{copy} exists and is not overwritten", "name another folder, or move it away") from None
        copy.chmod(source.stat().st_mode & 0o777 | 0o600)
    if as_json:
        print_json({"recipe": recipe.name, "path": str(target)})
    else:
        say(f"{target}\nnext: prefopt check {target}, then prefopt run {target}")
