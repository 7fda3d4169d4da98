"""From what a person points at to the artefact of a trained stage, whole and with the base it was trained on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.errors import InputError, IntegrityError
from prefopt.pipeline.context import StageInput
from prefopt.pipeline.keys import KEY_FILE, Keys, StageKey, changes
from prefopt.pipeline.runner import cache_folder
from prefopt.pipeline.stages import Registry
from prefopt.recipe.layout import closest
from prefopt.recipe.load import load
from prefopt.recipe.schema import POLICY_KINDS, ModelSpec, Recipe
from prefopt.store import manifest as manifests
from prefopt.store.files import read_json, sha256_json
from prefopt.store.hashing import HashCache
from prefopt.store.manifest import Manifest
from prefopt.store.run import KEY_DIGITS, RunDirectory

MODEL_KINDS = ("pretrain", *POLICY_KINDS)
EXPORT_KINDS = (*MODEL_KINDS, "reward")
# The adapter has the shape it was trained with in a file of its own, and code is trusted or not each time.
_NOT_OF_THE_BASE = ("lora", "trust_remote_code")
_KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
_HOW = "give runs/NAME/stages/STAGE, a KEY12 folder in it, or runs/NAME with --stage STAGE"


@dataclass(frozen=True)
class ModelArtefact:
    """A trained stage that can answer, its files and those of its base verified in full.

    Attributes:
        run: The run it belongs to.
        recipe: The run's own recipe.
        trained: The stage.
        model: The base model; of a pretrain stage, the stage itself.
        inputs: The artefacts that hold weights: the stage, and the pretrain stage it was trained on.
    """

    run: RunDirectory
    recipe: Recipe
    trained: StageInput
    model: ModelSpec
    inputs: Mapping[str, StageInput]

    @property
    def has_gold(self) -> bool:
        """Whether the run's recipe has data of the embedded world, whose gold reward is known."""
        return any(spec.path == "toy" for spec in self.recipe.data.values())


def find_artefact(path: Path, stage: str | None = None, kinds: Sequence[str] = MODEL_KINDS) -> ModelArtefact:
    """Find, judge and verify the artefact of a stage that has a model; imports no torch and loads no weights.

    Args:
        path: `runs/NAME/stages/STAGE`, its KEY12 folder, or `runs/NAME`.
        stage: Name of the stage, where `path` is the run's folder.
        kinds: Of the stages that will do.

    Raises:
        InputError: When there is no such stage, it is not finished, it is of another kind, or the run's recipe has
            another base model now.
        IntegrityError: When a file is not what its manifest says.
    """
    run, name, key = _locate(path, stage, kinds)
    if not run.recipe.is_file():
        raise InputError(f"{run.root} is not the folder of a run: it has no recipe.yaml", _HOW)
    recipe = load(run.recipe).recipe
    directory = run.stage_root(name) if key is None else run.stage(name, key)
    if key is None or not (directory / manifests.MANIFEST).is_file():
        raise InputError(f"stage {name} has no finished artefact in {directory}", "`prefopt run` finishes it")
    manifest = manifests.read(directory)
    if manifest.kind not in kinds:
        able = [other for other, spec in recipe.stages.items() if spec.kind in kinds]
        raise InputError(
            f"{directory} is the artefact of stage {manifest.stage}, kind {manifest.kind}, which has no model",
            f"stages with one: {', '.join(able)}",
        )
    if manifest.stage != name or not manifest.key.startswith(key):
        raise IntegrityError(
            f"{directory} holds the artefact of stage {manifest.stage}, key {manifest.key[: len(key)]}"
        )
    trained = StageInput(name, manifest.kind, directory, manifests.verify(directory, full=True))
    if manifest.kind == "pretrain":
        # Of the recipe's options for its base only those of the same base apply.
        is_base = recipe.model.model_name_or_path == name
        model = recipe.model if is_base else ModelSpec(model_name_or_path=name)
        return ModelArtefact(run, recipe, trained, model, {name: trained})
    _check_model(trained, recipe, run)
    return ModelArtefact(run, recipe, trained, recipe.model, {name: trained, **_base(trained, recipe, run)})


def _locate(path: Path, stage: str | None, kinds: Sequence[str]) -> tuple[RunDirectory, str, str | None]:
    """Run, stage and KEY12 of what was pointed at; the last is None where the stage was never finished."""
    folder = Path(os.path.abspath(path.expanduser()))
    if not folder.is_dir():
        raise InputError(f"{path} is no folder", _HOW)
    if (folder / "recipe.yaml").is_file():
        run = RunDirectory(folder)
        name = _named(run, stage, kinds)
        return run, name, run.current(name)
    if folder.parent.name == "stages":
        run, name = RunDirectory(folder.parent.parent), folder.name
        key = run.current(name)
    elif folder.parent.parent.name == "stages" and _KEY.fullmatch(folder.name):
        run, name, key = RunDirectory(folder.parents[2]), folder.parent.name, folder.name
    else:
        raise InputError(f"{path} is neither the folder of a stage nor of a run", _HOW)
    if stage not in (None, name):
        raise InputError(f"{path} is of stage {name}, not of {stage}", "--stage goes with the folder of a run")
    return run, name, key


def _named(run: RunDirectory, stage: str | None, kinds: Sequence[str]) -> str:
    recipe = load(run.recipe).recipe
    able = [name for name, spec in recipe.stages.items() if spec.kind in kinds]
    if stage is None:
        raise InputError(f"{run.root} has several stages", f"name one with --stage: {', '.join(able)}")
    if stage not in recipe.stages:
        near = closest(stage, list(recipe.stages))
        remedy = f"did you mean '{near}'?" if near else f"stages with a model: {', '.join(able)}"
        raise InputError(f"{run.root} has no stage '{stage}'", remedy)
    return stage


def _check_model(trained: StageInput, recipe: Recipe, run: RunDirectory) -> None:
    """The run's recipe may have been changed after the stage was made; an adapter fits the base it was trained on."""
    file = trained.directory / KEY_FILE
    content = read_json(file)
    if not isinstance(content, dict) or sha256_json(content) != trained.manifest.key:
        raise IntegrityError(f"{file} is not what the key in the manifest beside it was made of")
    hashes = HashCache(cache_folder(run.root) / "hashes.json")
    then, now = content["model"], Keys(recipe, Registry(), hashes).model
    # An option that is younger than the artefact had no other value then.
    same_base = {name: now.get(name) for name in then if name not in _NOT_OF_THE_BASE}
    different = changes(trained.directory, StageKey({**content, "model": {**then, **same_base}}))
    if different:
        raise InputError(
            f"stage {trained.stage} was trained on another base than the recipe.yaml of its run names now: "
            + ", ".join(different),
            "run the recipe again, or set the model back",
        )


def _base(trained: StageInput, recipe: Recipe, run: RunDirectory) -> dict[str, StageInput]:
    """The pretrain stage that the stage was trained on; empty where the base is a local folder or from the Hub."""
    name = recipe.model.model_name_or_path
    recorded = trained.manifest.inputs.get(name)
    if recorded is None:
        return {}
    directory = run.stage(name, recorded["key"])
    base: Manifest = manifests.verify(directory, full=True)
    if base.sha256 != recorded["sha256"]:
        raise IntegrityError(
            f"{directory} was made again, and differs from what stage {trained.stage} was trained on",
            "run the recipe again",
        )
    return {name: StageInput(name, base.kind, directory, base)}
