"""Functions that installed packages register, found without importing them: recipes hold no code.

A package says in its own pyproject.toml::

    [project.entry-points."prefopt.rewards"]
    brevity = "my_rewards.brevity:reward"

    [project.entry-points."prefopt.costs"]
    shouting = "my_rewards.shouting:cost"
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path

from prefopt.errors import InputError
from prefopt.recipe.layout import closest

REWARDS = "prefopt.rewards"
COSTS = "prefopt.costs"
_CALLED = {REWARDS: "reward function", COSTS: "cost"}


@dataclass(frozen=True)
class Registered:
    """A function as its package registers it.

    Attributes:
        entry: Loads it.
        distribution: Name of the package, as installed.
        version: Of the package.
        file: Of the module that the entry names.
    """

    entry: EntryPoint
    distribution: str
    version: str
    file: Path

    @property
    def name(self) -> str:
        """What recipes call it."""
        return self.entry.name


def registered(name: str, group: str = REWARDS) -> Registered:
    """The function of a name in a group of entry points, `REWARDS` or `COSTS`.

    Raises:
        InputError: When no installed package registers it, or two do, or its module has no file.
    """
    found = [entry for entry in _entries(group) if entry.name == name]
    if not found:
        raise InputError(*unknown(name, group))
    called = _CALLED[group]
    # A folder that is on the path twice is not a second package.
    sources = {(entry.value, *_package(entry)): entry for entry in found}
    if len(sources) > 1:
        packages = ", ".join(sorted({package for _, package, _ in sources}))
        raise InputError(f"the {called} '{name}' is registered more than once: {packages}", "uninstall one")
    ((_, package, version), entry), *_ = sources.items()
    file = _file_of(entry.module)
    if file is None:
        raise InputError(
            f"the {called} '{name}' of {package} is to be in {entry.module}, and there is no such file",
            "install the package again",
        )
    return Registered(entry, package, version, file)


def unknown(name: str, group: str = REWARDS) -> tuple[str, str]:
    """Message and remedy for a name that nobody registers."""
    names = sorted({entry.name for entry in _entries(group)})
    near = closest(name, names)
    if near:
        remedy = f"did you mean '{near}'?"
    elif names:
        remedy = f"registered are {', '.join(names)}"
    else:
        remedy = f"none is: a package registers functions under the entry-point group '{group}'"
    return f"no installed package registers a {_CALLED[group]} '{name}'", remedy


def is_registered(name: str, group: str = REWARDS) -> bool:
    """Whether some installed package registers a function of this name."""
    return any(entry.name == name for entry in _entries(group))


def _entries(group: str) -> Sequence[EntryPoint]:
    return tuple(importlib.metadata.entry_points(group=group))


def _package(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")


def _file_of(module: str) -> Path | None:
    """Where a module lies. `importlib.util.find_spec` would run the packages that it is in."""
    names = module.split(".")
    places: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    for depth in range(len(names)):
        spec = _spec_of(".".join(names[: depth + 1]), places)
        if spec is None:
            return None
        places = spec.submodule_search_locations or ()
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


def _spec_of(name: str, places: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, places) if find is not None else None
        if spec is not None:
            return spec  # type: ignore[no-any-return]
    return None
