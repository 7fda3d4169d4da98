"""`prefopt.run`: a recipe from Python, with the same result as the command."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from prefopt.pipeline.provenance import recipe_text
from prefopt.pipeline.runner import run_folder, run_recipe
from prefopt.pipeline.summary import RunOptions, RunSummary
from prefopt.recipe.base import Spec
from prefopt.recipe.load import LoadedRecipe, load
from prefopt.recipe.options.costs import CostSpec
from prefopt.recipe.references import SCORER_ROLES
from prefopt.recipe.schema import AnyStage, EvaluateSpec, Recipe
from prefopt.recipe.scorers import PPORewardSpec, ScorerSpec, SourceSpec
from prefopt.tracking.progress import Display

__all__ = ["RunOptions", "RunSummary", "run"]

_Spec = TypeVar("_Spec", bound=Spec)


def run(
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    options: RunOptions | None = None,
    quiet: bool = False,
) -> RunSummary:
    """Runs what is not done yet of a recipe; calling it again resumes, and does nothing when all is done.

    Args:
        recipe: A file, or a recipe made in Python. Relative paths in the latter start at the working folder.
        out: The run folder; `runs/NAME` by default.
        overrides: As `--set`: `stages.dpo.beta=0.2`. Only with a file.
        options: Everything else that the command line offers.
        quiet: Show messages, and no progress.

    Returns:
        What came of every stage; `RunSummary.report` is the page to open.

    Raises:
        RecipeError: With every problem of the recipe that could be found.
        PrefoptError: The first error of a stage. What was finished before it is kept, also that of other branches.
    """
    options = options or RunOptions()
    if out is not None:
        options = replace(options, out=Path(out))
    loaded = _judged(recipe, options) if isinstance(recipe, Recipe) else load(Path(recipe), overrides)
    with Display(quiet=quiet) as display:
        summary = run_recipe(loaded, options, display)
    if summary.errors:
        raise summary.errors[0]
    return summary


def _judged(recipe: Recipe, options: RunOptions) -> LoadedRecipe:
    """A recipe made in Python after the same checks as one from a file."""
    absolute = recipe.model_copy(
        update={
            "model": _absolute(recipe.model, "model_name_or_path"),
            "data": {name: _absolute(spec, "path") for name, spec in recipe.data.items()},
            "stages": {name: _with_files(stage) for name, stage in recipe.stages.items()},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{recipe.name}.yaml"
        path.write_text(recipe_text(absolute), encoding="utf-8")
        loaded = load(path)
    # Where a run of it leaves its recipe, and so what the command that resumes it is given.
    return replace(loaded, path=run_folder(recipe.name, options.out) / "recipe.yaml")


def _with_files(stage: AnyStage) -> AnyStage:
    scorers = {role: getattr(stage, role, None) for role in SCORER_ROLES}
    changed: dict[str, Any] = {
        role: scorer.changed(_files_of) for role, scorer in scorers.items() if isinstance(scorer, ScorerSpec)
    }
    reward = changed.get("reward")
    if isinstance(reward, PPORewardSpec):
        changed["reward"] = reward.model_copy(update={"penalties": _costs_with_files(reward.penalties)})
    if isinstance(stage, EvaluateSpec):
        changed["costs"] = _costs_with_files(stage.costs)
    return stage.model_copy(update=changed)


def _costs_with_files(costs: Sequence[CostSpec]) -> tuple[CostSpec, ...]:
    return tuple(cost.model_copy(update=_files_of(cost)) for cost in costs)


def _files_of(source: SourceSpec | CostSpec) -> dict[str, object]:
    named = [name for name in ("lexicon", "pretrained") if getattr(source, name, None) is not None]
    return {name: getattr(_absolute(source, name), name) for name in named}


def _absolute(spec: _Spec, name: str) -> _Spec:
    path = Path(getattr(spec, name))
    is_local = getattr(spec, name) != "toy" and path.exists()
    return spec.model_copy(update={name: str(path.absolute())}) if is_local else spec
