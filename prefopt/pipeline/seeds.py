"""One recipe over several seeds: `prefopt run --seeds N`, and what the seeds say together.

The first seed is the run itself; the others are runs of their own in `seeds/SEED` of its folder, in which every stage
without a `seed:` of its own has another one. Data sets, and which prompts they hold out, follow the recipe's seed, so
that all seeds answer the same prompts. A stage that comes out with a key that an earlier seed has is not run again: its
artefact is linked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import InputError, PrefoptError
from prefopt.pipeline.runner import run_folder, run_recipe
from prefopt.pipeline.summary import RunOptions, RunSummary, Watcher, resume_command
from prefopt.recipe.load import LoadedRecipe
from prefopt.recipe.rounds import unroll
from prefopt.store.files import write_json
from prefopt.store.run import SEEDS, RunDirectory

if TYPE_CHECKING:
    from prefopt.evaluation.compare import Comparison

COMPARISON = "seeds.json"


@dataclass(frozen=True)
class SeedsSummary:
    """What became of a recipe over its seeds.

    Attributes:
        runs: Summary of each seed, in the order in which they ran.
        comparison: The policies over all seeds; None where nothing was compared.
        notes: What a reader must know about it, or why there is none.
    """

    runs: dict[int, RunSummary]
    comparison: Comparison | None
    notes: list[str]

    @property
    def errors(self) -> tuple[PrefoptError, ...]:
        """What went wrong, in the order it did."""
        return tuple(error for run in self.runs.values() for error in run.errors)

    @property
    def exit_code(self) -> int:
        """0, or the code of the first error."""
        return self.errors[0].exit_code if self.errors else 0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "exit_code": self.exit_code,
            "seeds": {str(seed): run.to_json() for seed, run in self.runs.items()},
            "comparison": self.comparison.to_json() if self.comparison else None,
            "notes": self.notes,
        }


def with_seed(loaded: LoadedRecipe, seed: int) -> LoadedRecipe:
    """A recipe whose stages have another seed, but for those that name their own."""
    written = loaded.written
    stages = {
        name: spec if spec.seed is not None else spec.model_copy(update={"seed": seed})
        for name, spec in written.stages.items()
    }
    changed = written.model_copy(update={"stages": stages})
    return replace(loaded, written=changed, recipe=unroll(changed))


def run_seeds(
    loaded: LoadedRecipe,
    options: RunOptions,
    watcher: Watcher,
    count: int,
) -> SeedsSummary:
    """Run a recipe with its seed, the next, and so on.

    Args:
        loaded: The recipe.
        options: How to run it; `out` is the folder of the first seed.
        watcher: Is told what happens.
        count: How many seeds.

    Returns:
        What came of every seed. A seed that fails does not keep the others from running; one that was interrupted does.

    Raises:
        InputError: When every stage names a seed of its own, so that all seeds would be the same.
    """
    recipe = loaded.recipe
    if count > 1 and all(spec.seed is not None for spec in recipe.stages.values()):
        raise InputError("every stage has a 'seed' of its own, so that no other would change anything")
    root = run_folder(recipe.name, options.out)
    again = f"{resume_command(loaded, options)} --seeds {count}" if count > 1 else ""
    runs: dict[int, RunSummary] = {}
    folders: list[Path] = []
    for seed in range(recipe.seed, recipe.seed + count):
        first = seed == recipe.seed
        folder = root if first else root / SEEDS / str(seed)
        if count > 1:
            watcher.message(f"seed {seed}: {folder}")
        chosen = replace(options, out=folder, borrow_from=tuple(folders), resume=again)
        runs[seed] = run_recipe(loaded if first else with_seed(loaded, seed), chosen, watcher)
        folders.append(folder)
        if any(outcome.state == "interrupted" for outcome in runs[seed].stages):
            break
    comparison, notes = (None, []) if options.dry_run or len(runs) == 1 else _compared(root)
    if comparison is not None:
        write_json(root / COMPARISON, {**comparison.to_json(), "notes": notes})
        first_run = runs[recipe.seed]
        runs[recipe.seed] = replace(first_run, report=_render(root, watcher) or first_run.report)
    return SeedsSummary(runs, comparison, notes)


def _compared(root: Path) -> tuple[Comparison | None, list[str]]:
    # Not above: numpy and scipy would make every run start later.
    from prefopt.pipeline.comparison import compare_runs

    try:
        return compare_runs([str(root)])
    except InputError as error:
        return None, [f"the policies are not compared: {error.message}"]


def _render(root: Path, watcher: Watcher) -> Path | None:
    if not RunDirectory(root).report.exists():
        return None
    try:
        from prefopt.report import render

        return render(root)
    # The report shows what was done; whatever is wrong with it, what was done stays done.
    except Exception as error:
        watcher.message(f"the report could not be made: {type(error).__name__}: {error}")
        return None
