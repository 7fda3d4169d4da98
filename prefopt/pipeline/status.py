"""Where a run stands, judged from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefopt.errors import GateRefused, InputError
from prefopt.evaluation import gates
from prefopt.pipeline.graph import nodes
from prefopt.pipeline.keys import Keys
from prefopt.pipeline.plan import Plan, Planner
from prefopt.pipeline.runner import cache_folder
from prefopt.pipeline.stages import Registry
from prefopt.recipe.load import load
from prefopt.store.hashing import HashCache
from prefopt.store.lock import describe_holder, is_held
from prefopt.store.run import RunDirectory

StageState = Literal["done", "running", "waiting", "failed", "interrupted", "stale", "damaged", "missing", "refused"]
_AFTER_EVENT: dict[str, StageState] = {
    "stage_failed": "failed",
    "stage_waiting": "waiting",
    "stage_interrupted": "interrupted",
}


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands.

    Attributes:
        state: `stale`: there is an artefact, of other settings or inputs. `damaged`: a file of it has changed.
            `refused`: it is done, and its gate says no.
        next: What `prefopt run` would do with it.
        metrics: Of the artefact, when it is done.
        damage: The file that is damaged and how; empty when none is.
    """

    stage: str
    kind: str
    state: StageState
    next: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    directory: Path | None = None
    damage: str = ""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        name: The recipe's name.
        holder: The process that holds the run folder now; empty when none does.
    """

    name: str
    directory: Path
    stages: tuple[StageStatus, ...]
    holder: str = ""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "running": self.holder or None,
            "stages": [
                {
                    "stage": stage.stage,
                    "kind": stage.kind,
                    "state": stage.state,
                    "next": stage.next,
                    "metrics": dict(stage.metrics),
                    "directory": str(stage.directory) if stage.directory else None,
                    "damage": stage.damage or None,
                }
                for stage in self.stages
            ],
        }


def run_status(directory: Path, *, verify: bool = False, registry: Registry | None = None) -> RunStatus:
    """Judges a run folder; writes nothing.

    Args:
        directory: The run folder.
        verify: Hash every byte of every artefact.
        registry: Which module runs which kind.

    Raises:
        InputError: When the folder is none of a run, or its recipe is invalid.
        IntegrityError: When its log of events is damaged.
    """
    run = RunDirectory(directory)
    if not run.recipe.is_file():
        raise InputError(f"{directory} is not the folder of a run: it has no recipe.yaml")
    recipe = load(run.recipe).recipe
    hashes = HashCache(cache_folder(directory) / "hashes.json")
    planner = Planner(run, Keys(recipe, registry or Registry(), hashes), hashes, full=verify)
    last = {str(event["stage"]): event for event in run.events() if "stage" in event}
    return RunStatus(
        name=recipe.name,
        directory=directory,
        stages=tuple(_stage(run, plan, last.get(plan.node.name, {})) for plan in planner.everything(nodes(recipe))),
        holder=describe_holder(run.lock_file) if is_held(run.lock_file) else "",
    )


def _stage(run: RunDirectory, plan: Plan, last: Mapping[str, Any]) -> StageStatus:
    name = plan.node.name
    state = _state(run, plan, last)
    if state == "refused":
        follows = "nothing, nor any stage that reads it: " + _refusal(plan)
    elif plan.manifest is not None:
        follows = "nothing"
    elif state == "running":
        follows = "it is running"
    else:
        error = f" (last time: {last['error']})" if state in ("failed", "waiting") else ""
        follows = f"run: {plan.why}{error}"
    metrics = plan.manifest.metrics if plan.manifest is not None else {}
    return StageStatus(name, plan.node.kind, state, follows, metrics, plan.directory, plan.damage)


def _state(run: RunDirectory, plan: Plan, last: Mapping[str, Any]) -> StageState:
    name = plan.node.name
    if plan.damage:
        return "damaged"
    if plan.done:
        return "refused" if _refusal(plan) else "done"
    if is_held(run.stage_lock(name)):
        return "running"
    started = plan.directory is not None and plan.directory.exists()
    if plan.key is not None and last.get("key") == plan.key.digest:
        # A process that was killed leaves the event of its start as the last one.
        return _AFTER_EVENT.get(str(last["event"]), "interrupted")
    if started:
        return "interrupted"
    return "stale" if run.current(name) is not None else "missing"


def _refusal(plan: Plan) -> str:
    """What the gate of a finished stage says; empty when it holds."""
    assert plan.manifest is not None and plan.directory is not None
    try:
        gates.require(plan.node.name, plan.node.spec.require, plan.manifest.metrics, plan.directory)
    except (GateRefused, InputError) as error:
        return error.message
    return ""
