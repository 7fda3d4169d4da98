"""The recipes that ship with prefopt."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import prefopt
from prefopt.errors import InputError
from prefopt.recipe.yaml import parse, read_text


@dataclass(frozen=True)
class BundledRecipe:
    """A recipe to start from.

    Attributes:
        name: Its file without `.yaml`.
        path: The file.
        description: One line: the recipe's `description`, or the first comment of the file.
    """

    name: str
    path: Path
    description: str


def recipes_folder() -> Path | None:
    """`recipes/` of the checkout, or where an installed wheel put it; None where there is neither."""
    checkout = Path(prefopt.__file__).parent.parent / "recipes"
    installed = Path(sysconfig.get_path("data")) / "share" / "prefopt" / "recipes"
    return next((folder for folder in (checkout, installed) if folder.is_dir()), None)


def bundled_recipes() -> tuple[BundledRecipe, ...]:
    """Every recipe that ships with prefopt, by name."""
    folder = recipes_folder()
    if folder is None:
        return ()
    return tuple(BundledRecipe(path.stem, path, describe(path)) for path in sorted(folder.glob("*.yaml")))


def bundled_recipe(name: str) -> BundledRecipe:
    """The recipe of a name; `.yaml` may be left on it.

    Raises:
        InputError: There is none.
    """
    from prefopt.recipe.layout import closest  # imports pydantic, which listing recipes does without

    known = {recipe.name: recipe for recipe in bundled_recipes()}
    wanted = name.removesuffix(".yaml")
    if wanted in known:
        return known[wanted]
    if not known:
        raise InputError("this installation has no recipes", "reinstall prefopt, or copy one from its repository")
    near = closest(wanted, list(known))
    remedy = f"did you mean '{near}'?" if near else f"recipes are {', '.join(known)}"
    raise InputError(f"there is no recipe '{name}'", remedy)


def beside(path: Path) -> tuple[Path, ...]:
    """The files in a bundled recipe's folder that its `data` names; a copy of the recipe needs them beside it."""
    data = parse(read_text(path), str(path)).tree.get("data")
    named = [spec.get("path") for spec in data.values() if isinstance(spec, dict)] if isinstance(data, dict) else []
    files = (path.with_name(name) for name in named if isinstance(name, str) and Path(name).name == name)
    return tuple(file for file in files if file.is_file())


def describe(path: Path) -> str:
    """One line about a recipe file: its `description`, or its first comment that is not the `#!` line."""
    text = read_text(path)
    described = parse(text, str(path)).tree.get("description")
    if isinstance(described, str) and described.strip():
        return described.strip().splitlines()[0]
    for line in text.splitlines():
        if line.startswith("#") and not line.startswith("#!") and line.strip("# "):
            return line.strip("# ")
        if line.strip() and not line.startswith("#"):
            break
    return ""
