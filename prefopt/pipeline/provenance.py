"""Where a run came from: the recipe as it was understood, and the software and machine it ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import yaml

import prefopt
from prefopt.recipe.load import LoadedRecipe
from prefopt.recipe.schema import Recipe
from prefopt.store.files import write_atomic, write_json
from prefopt.store.run import RunDirectory
from prefopt.store.secrets import as_variables, redact

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "datasets", "safetensors", "wandb")


def write_provenance(run: RunDirectory, loaded: LoadedRecipe) -> None:
    """Writes `recipe.yaml` and `fingerprint.json`.

    The recipe is written as it was understood: overrides and variables filled in, local paths absolute, so that
    `status` judges the same recipe from any folder and without the variables. Values of variables that look like
    secrets stay variables. `rounds` stay as they were written.

    Raises:
        EnvironmentFault: When they cannot be written.
    """
    changed = "".join(f" --set {override}" for override in loaded.overrides)
    header = f"# {loaded.path.absolute()}{changed}\n# Variables and relative paths are filled in.\n"
    text = redact(header.replace("\r", " ")) + recipe_text(loaded.written)
    write_atomic(run.recipe, text)
    came_from = {"recipe": str(loaded.path.absolute()), "overrides": list(loaded.overrides)}
    write_json(run.fingerprint, {**environment(), **as_variables(came_from)})  # type: ignore[dict-item]


def recipe_changed(run: RunDirectory, loaded: LoadedRecipe) -> bool:
    """Whether the run folder was last written for another recipe, be it in keys that make nothing run again."""
    try:
        stored = run.recipe.read_text("utf-8")
    except (OSError, ValueError):
        return True
    return "".join(line for line in stored.splitlines(True) if not line.startswith("#")) != recipe_text(loaded.written)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML: the keys that were set, in the schema's order."""
    content = recipe.model_dump(mode="json", exclude_unset=True)
    text: str = yaml.safe_dump(as_variables(content), sort_keys=False, allow_unicode=True, width=120)
    return text


def environment() -> dict[str, object]:
    """Software and machine, without anything that names a person or a host."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "prefopt": prefopt.__version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "versions": versions,
    }
