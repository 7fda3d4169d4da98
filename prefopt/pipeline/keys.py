"""A stage's key: the hash of everything that decides its numbers, kept in a form that a person can compare.

Equal keys mean that running the stage again would give the same result, so it is not run again. What changes no
numbers (logging, saving, workers, where a file lies) is left out.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from prefopt.data.load import consulted
from prefopt.data.sources import fingerprint
from prefopt.errors import IntegrityError
from prefopt.pipeline.graph import Node
from prefopt.pipeline.revisions import KEYED_LIBRARIES, USES_MODEL
from prefopt.pipeline.stages import Registry
from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.options.loss_costs import COST_HOLDERS, LOSS_COST_ROLES
from prefopt.recipe.references import DATA_ROLES, SCORER_ROLES
from prefopt.recipe.registered import COSTS, REWARDS, registered
from prefopt.recipe.schema import DataSpec, Recipe
from prefopt.store.files import disk_faults, read_json, sha256_json, write_json
from prefopt.store.hashing import HashCache
from prefopt.store.run import KEY_DIGITS

KEY_FILE = "key.json"
_HASH_DIGITS = 8


@dataclass(frozen=True)
class StageKey:
    """A key and what it was made of.

    Attributes:
        content: Canonical JSON, kept beside the artefact.
    """

    content: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """64 hexadecimal digits."""
        return sha256_json(self.content)

    @property
    def short(self) -> str:
        """The digits that name the artefact's folder."""
        return self.digest[:KEY_DIGITS]


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that compute the numbers; those that are not installed are left out."""
    versions = {}
    for name in KEYED_LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


class Keys:
    """Computes the keys of a recipe's stages.

    Args:
        recipe: Local paths in it are absolute.
        registry: Knows the revisions of the stages' code.
        cache: Remembers hashes of local files.
    """

    def __init__(self, recipe: Recipe, registry: Registry, cache: HashCache) -> None:
        self._recipe = recipe
        self._registry = registry
        self._cache = cache
        self._data: dict[str, dict[str, Any]] = {}

    def of(self, node: Node, inputs: Mapping[str, str]) -> StageKey:
        """The key of a stage.

        Args:
            node: The stage.
            inputs: `Manifest.sha256` of every stage it reads.

        Raises:
            EnvironmentFault: When a local file of the recipe cannot be read.
            InputError: When a reward function is not installed any more.
        """
        spec = spec_for_key(node.spec)
        spec.pop("seed", None)
        self._scorers(spec)
        spec = self._localised(spec, "teacher_model_name_or_path")
        names = dict.fromkeys(name for role in DATA_ROLES for name in getattr(node.spec, role, ()))
        # A batch is per process, so their number decides numbers; how they share the work does not.
        ranks = getattr(node.spec, "ranks", 1)
        return StageKey(
            {
                **({"num_processes": ranks} if ranks > 1 else {}),
                "kind": node.kind,
                "revision": self._registry.revision(node.kind),
                "seed": self.seed(node),
                "spec": spec,
                "model": self.model if node.kind in USES_MODEL else None,
                "data": {name: self._data_set(name) for name in names if name in self._recipe.data},
                # Sets that are read only to keep the prompts they hold out away from training.
                "consulted": {name: self._data_set(name) for name in consulted(tuple(names), self._recipe.data)}
                if names
                else {},
                "inputs": dict(inputs),
                "versions": self._versions,
            }
        )

    def _scorers(self, spec: dict[str, Any]) -> None:
        """Puts what scorers are made of in the place of where it lies; `spec` is changed."""
        for role in SCORER_ROLES:
            scorer = spec.get(role)
            if scorer is None:
                continue
            spec[role] = self._scorer(scorer)
            if "weighted" in scorer:
                spec[role]["weighted"] = [self._scorer(part) for part in scorer["weighted"]]
            if "penalties" in scorer:
                spec[role]["penalties"] = [self._scorer(cost, COSTS) for cost in scorer["penalties"]]
        for holder in (spec, *(spec.get(key, {}) for key in COST_HOLDERS)):
            for role in ("costs", *LOSS_COST_ROLES):
                if role in holder:
                    holder[role] = [self._scorer(cost, COSTS) for cost in holder[role]]

    def _scorer(self, scorer: dict[str, Any], group: str = REWARDS) -> dict[str, Any]:
        """A scorer, or a cost, with what it is made of."""
        if scorer.get("lexicon") is not None:
            path = Path(scorer["lexicon"])
            with disk_faults(path):
                return {**scorer, "lexicon": self._cache.file(path)}
        if "function" in scorer:
            function = registered(scorer["function"], group)
            with disk_faults(function.file):
                content = self._cache.file(function.file)
            return {**scorer, "package": [function.distribution, function.version], "function_content": content}
        folder = Path(scorer.get("pretrained", ""))
        if folder.is_absolute():
            with disk_faults(folder):
                return {**scorer, "pretrained": self._cache.tree(folder)}
        return dict(scorer)

    def seed(self, node: Node) -> int:
        """The seed a stage runs with."""
        return self._recipe.seed if node.spec.seed is None else node.spec.seed

    @cached_property
    def _versions(self) -> dict[str, str]:
        return {name: ".".join(version.split(".")[:2]) for name, version in library_versions().items()}

    @cached_property
    def model(self) -> dict[str, Any]:
        """What stages with a model hold of the recipe's; a local folder is known by the hash of what is in it.

        Raises:
            EnvironmentFault: When a local folder or file cannot be read.
        """
        spec = spec_for_key(self._recipe.model)
        return self._localised(self._localised(spec, "model_name_or_path"), "chat_template")

    def _localised(self, spec: dict[str, Any], name: str) -> dict[str, Any]:
        """Replaces an absolute path by the hash of what lies there, so that moving a folder changes no key."""
        path = Path(str(spec.get(name, "")))
        if not path.is_absolute():
            return spec
        with disk_faults(path):
            content = self._cache.tree(path) if path.is_dir() else self._cache.file(path)
        return {**spec, name: path.name, f"{name}_content": content}

    def _data_set(self, name: str) -> dict[str, Any]:
        if name not in self._data:
            spec = self._recipe.data[name]
            # The split into train and held-out prompts, and toy data, follow the recipe's seed.
            entry = {**spec_for_key(spec), "content": self._content(spec), "recipe_seed": self._recipe.seed}
            if Path(spec.path).is_absolute():
                entry["path"] = Path(spec.path).name
            self._data[name] = entry
        return self._data[name]

    def _content(self, spec: DataSpec) -> dict[str, Any]:
        content = fingerprint(spec)
        if content["kind"] != "files":
            return content
        with disk_faults(Path(spec.path)):
            files = [[Path(name).name, self._cache.file(Path(name))] for name in content["files"]]
        return {**content, "files": files}


def save_key(directory: Path, key: StageKey) -> None:
    """Writes what a key was made of beside the artefact.

    Raises:
        EnvironmentFault: When it cannot be written.
    """
    write_json(directory / KEY_FILE, key.content)


def changes(directory: Path, key: StageKey) -> list[str]:
    """What differs between the key of an earlier artefact and a new one, one line each.

    Args:
        directory: The earlier artefact's folder.
        key: The new key.

    Returns:
        Lines such as `learning_rate 1e-4 → 2e-4`; empty when nothing differs or the earlier key cannot be read.
    """
    try:
        old = read_json(directory / KEY_FILE)
    except IntegrityError:
        return []
    before, after = _flat(old, ""), _flat(key.content, "")
    return [
        f"{name} {_shown(before.get(name))} → {_shown(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _flat(value: object, prefix: str) -> dict[str, object]:
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        # Scorers and costs: by the name of the cost, or else by their place.
        value = {str(part.get("name") or part.get("cost") or place): part for place, part in enumerate(value, 1)}
    if not isinstance(value, dict):
        return {prefix.removeprefix("spec."): value}
    flat: dict[str, object] = {}
    for name, part in value.items():
        flat.update(_flat(part, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def _shown(value: object) -> str:
    if value is None or value == {}:
        return "nothing"
    if isinstance(value, float) and value != 0 and abs(value) < 1e-3:
        return f"{Decimal(repr(value)):e}"
    if isinstance(value, str) and len(value) == 64 and all(digit in "0123456789abcdef" for digit in value):
        return value[:_HASH_DIGITS]
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)
