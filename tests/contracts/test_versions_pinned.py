"""`constraints.txt` pins everything that `pyproject.toml` asks for, so that an installation is the tested one."""

from __future__ import annotations

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.end_to_end.small import ROOT

# Needs a CUDA device; no tested machine of the project installs it.
UNPINNED = {"bitsandbytes"}


def direct() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in (*project["dependencies"], *extras)]


def pins() -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, lines))}


def test_every_direct_dependency_is_pinned_to_one_version() -> None:
    wanted = {canonicalize_name(requirement.name) for requirement in direct()} - UNPINNED
    assert sorted(wanted - pins().keys()) == []
    for name, pin in pins().items():
        (only,) = pin.specifier
        assert only.operator == "==" and not only.version.endswith("*"), name


def test_the_pins_satisfy_what_is_asked_for() -> None:
    for requirement in direct():
        pin = pins().get(canonicalize_name(requirement.name))
        if pin is not None:
            (only,) = pin.specifier
            assert requirement.specifier.contains(only.version), str(requirement)
