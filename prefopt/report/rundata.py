"""What a run folder says, read for showing: nothing here fails because a part is missing or damaged.

A report is wanted most when something went wrong. Whatever cannot be read becomes a warning on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import InputError, PrefoptError
from prefopt.recipe.rounds import unrolled_blocks
from prefopt.report import microscope
from prefopt.report.costs import Price, price_of
from prefopt.report.findings import Evidence, read_evidence
from prefopt.report.judged import GateLine, judged
from prefopt.report.microscope import CloseUp, read_close_ups
from prefopt.report.seeds import Seeds, read_seeds
from prefopt.store import manifest as manifests
from prefopt.store.files import read_json
from prefopt.store.manifest import Manifest
from prefopt.store.run import RunDirectory
from prefopt.tracking.jsonl import NONFINITE, RESERVED, read_jsonl

Point = tuple[float, float]

_NUMBERS = (int, float)
_LARGEST = 1e100  # beyond it nothing can be drawn


@dataclass(frozen=True)
class StageData:
    """One stage of a run.

    Attributes:
        state: `done` (its manifest is there), `unfinished` (started, no manifest), or `not started`.
        key: First 12 digits of its key; empty when it was never started.
        options: Its block in the recipe.
        series: Points (step, value) by metric, in the order they were logged; values that are not finite left out.
        samples: Rows of `samples.jsonl` of an evaluate stage.
        close_ups: Episodes of a ppo stage, token by token.
        evidence: What an evaluate stage found beside its metrics.
        gates: Every bound of its `require`, in the recipe's order.
    """

    name: str
    kind: str
    state: str
    key: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    series: Mapping[str, list[Point]] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()
    close_ups: tuple[CloseUp, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    gates: tuple[GateLine, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """Final numbers, or the last logged ones while there is no manifest."""
        if self.manifest is not None:
            return self.manifest.metrics
        return {name: points[-1][1] for name, points in self.series.items() if points}

    @property
    def details(self) -> Mapping[str, Any]:
        """What the manifest keeps beside numbers."""
        return self.manifest.details if self.manifest is not None else {}


@dataclass(frozen=True)
class RunData:
    """A run, as far as it got.

    Attributes:
        warnings: What a reader must know before believing the numbers.
        price: Of an hour, where the recipe says it.
        seeds: What several seeds say together, where there are several.
    """

    name: str
    description: str
    stages: tuple[StageData, ...]
    recipe: str
    fingerprint: Any
    warnings: tuple[str, ...]
    price: Price | None = None
    seeds: Seeds | None = None

    @property
    def evaluations(self) -> list[StageData]:
        """Finished evaluate stages."""
        return [stage for stage in self.stages if stage.kind == "evaluate" and stage.state == "done"]


def read_run(root: Path) -> RunData:
    """Reads a run folder.

    Raises:
        InputError: When the folder is not one of a run.
    """
    run = RunDirectory(root)
    if not run.recipe.is_file() and not (root / "stages").is_dir():
        raise InputError(
            f"{root} is not the folder of a run: it has neither recipe.yaml nor stages/",
            "name the folder that `prefopt run` printed",
        )
    warnings: list[str] = []
    text = _text(run.recipe, warnings)
    recipe = _parse_recipe(text, warnings)
    blocks = unrolled_blocks(recipe)
    folders = sorted(path.name for path in (root / "stages").glob("*") if path.is_dir())
    names = [str(name) for name in blocks] + [name for name in folders if name not in blocks]
    stages = tuple(_read_stage(run, name, blocks.get(name), warnings) for name in names)
    price = price_of(recipe, warnings.append)
    seeds = read_seeds(root, warnings.append)
    return RunData(
        name=str(recipe.get("name") or root.resolve().name),
        description=str(recipe.get("description") or ""),
        stages=stages,
        recipe=text,
        fingerprint=_fingerprint(run.fingerprint, warnings),
        warnings=tuple(warnings),
        price=price,
        seeds=seeds,
    )


def reward_of(row: Mapping[str, Any]) -> float | None:
    """The reward of a sample: gold where there is one, else that of whatever scored it; None where nothing did."""
    for name in ("gold", "reward"):
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _text(path: Path, warnings: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        warnings.append(f"{path.name} cannot be read: {error.strerror}")
        return ""


def _parse_recipe(text: str, warnings: list[str]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        warnings.append(f"recipe.yaml is not valid YAML: {error}")
        return {}
    return value if isinstance(value, dict) else {}


def _fingerprint(path: Path, warnings: list[str]) -> Any:
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except (PrefoptError, OSError) as error:
        warnings.append(f"the environment is unknown: {error}")
        return {}


def _read_stage(run: RunDirectory, name: str, block: object, warnings: list[str]) -> StageData:
    options = block if isinstance(block, dict) else {}
    kind = str(options.get("kind", ""))
    try:
        current = run.current(name)
        key = current or run.started(name)
        if key is None:
            return StageData(name, kind, "not started", options=options)
        folder = run.stage(name, key)
    except PrefoptError as error:
        warnings.append(f"stage {name}: {error}")
        return StageData(name, kind, "unfinished", options=options)
    manifest = _manifest(folder, name, expected=current is not None, warnings=warnings)

    def warn(text: str) -> None:
        warnings.append(f"stage {name}: {text}")

    return StageData(
        name=name,
        kind=manifest.kind if manifest is not None else kind,
        state="done" if manifest is not None else "unfinished",
        key=key,
        options=options,
        manifest=manifest,
        series=_series(_rows(folder / "metrics.jsonl", name, warnings), name, warnings),
        samples=tuple(_rows(folder / "samples.jsonl", name, warnings)),
        close_ups=read_close_ups(_rows(folder / microscope.FILE, name, warnings), warn),
        evidence=read_evidence(folder, warn),
        gates=judged(name, options.get("require"), manifest.metrics if manifest is not None else None, warn),
    )


def _manifest(folder: Path, stage: str, *, expected: bool, warnings: list[str]) -> Manifest | None:
    if not expected and not (folder / manifests.MANIFEST).exists():
        return None
    try:
        manifest = manifests.read(folder)
    except (PrefoptError, OSError) as error:
        warnings.append(f"stage {stage}: {error}")
        return None
    for entry in _list(manifest.details.get("warnings")):
        warnings.append(f"stage {stage}: {entry}")
    errors = manifest.details.get("tracking_errors", 0)
    if errors:
        warnings.append(f"stage {stage}: the tracker failed {errors} times; the numbers here are complete")
    return manifest


def _list(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _rows(path: Path, stage: str, warnings: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return read_jsonl(path, lambda text: warnings.append(f"stage {stage}: {text}"))
    except (PrefoptError, OSError) as error:
        warnings.append(f"stage {stage}: {error}")
        return []


def _series(rows: list[dict[str, Any]], stage: str, warnings: list[str]) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    broken: dict[str, list[int]] = {}
    for row in rows:
        given: Any = row.get("step")
        if type(given) not in _NUMBERS or not -_LARGEST < given < _LARGEST or row.get("summary"):
            continue
        step = float(given)
        for name in _list(row.get(NONFINITE)):
            broken.setdefault(str(name), []).append(int(step))
        for name, value in row.items():
            # Not isinstance: it is slow at millions of values, and True is no number.
            if type(value) not in _NUMBERS or name in RESERVED:
                continue
            if -_LARGEST < value < _LARGEST:
                series.setdefault(name, []).append((step, float(value)))
            else:
                broken.setdefault(name, []).append(int(step))
    for name, steps in broken.items():
        more = f" and {len(steps) - 1} later steps" if len(steps) > 1 else ""
        warnings.append(f"stage {stage}: {name} was not a finite number at step {steps[0]}{more}")
    return series
