"""`prefopt check --deep`: looks into every training stage of a recipe before it runs; imports no torch itself.

Each stage is looked at in processes of its own, as it is run in one: `prefopt.pipeline.deep_stage` estimates, and where
that fits `prefopt.pipeline.deep_batch` makes real steps.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import DataError, EnvironmentFault, PrefoptError
from prefopt.pipeline.estimate import Estimate, size_text
from prefopt.pipeline.graph import Node, nodes
from prefopt.pipeline.keys import Keys, StageKey
from prefopt.pipeline.messages import Failed, InputRef, Job
from prefopt.pipeline.plan import Plan, Planner
from prefopt.pipeline.process import StageProcess, server_log, start_server
from prefopt.pipeline.runner import cache_folder, run_folder
from prefopt.pipeline.stages import Registry
from prefopt.recipe.load import LoadedRecipe
from prefopt.recipe.options.kto import ESTIMATES_KL
from prefopt.recipe.schema import AnyStage, KTOSpec, OnlineSpec, OptimisationSpec, TrainingSpec
from prefopt.store.files import read_json
from prefopt.store.hashing import HashCache
from prefopt.store.run import RunDirectory

ESTIMATE, WHOLE_BATCH = "prefopt.pipeline.deep_stage", "prefopt.pipeline.deep_batch"
REPORT = "deep.json"
MEMORY_VARIABLE = "PREFOPT_MEMORY"
# The allocator's own need, and rows that are longer than any now.
HEADROOM = 0.9


@dataclass(frozen=True)
class DeepOptions:
    """How to look.

    Attributes:
        out: The run folder, whose finished stages are used; `runs/NAME` by default.
        fit: Also find the largest batches that fit.
        memory: Bytes that a stage may use; what the machine has by default.
        trust_remote_code: The command line's half of the double opt-in.
    """

    out: Path | None = None
    fit: bool = False
    memory: int | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Fit:
    """Batch sizes that fit.

    Attributes:
        stage: Of this stage.
        settings: Key → value, for what changes.
        verified: Peak bytes of real steps with them; None where the system does not say.
    """

    stage: str
    settings: Mapping[str, int]
    verified: int | None


@dataclass(frozen=True)
class Finding:
    """What came of a stage.

    Attributes:
        stage: Its name.
        kind: Its kind.
        report: What `deep_stage` and `deep_batch` wrote; None when it could not.
        error: Why the stage cannot be trained as it is; None when it can.
        fit: Where it was asked for.
    """

    stage: str
    kind: str
    report: Mapping[str, Any] | None
    error: PrefoptError | None
    fit: Fit | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        error = None if self.error is None else {"message": self.error.message, "remedy": self.error.remedy}
        fit = None if self.fit is None else {"settings": dict(self.fit.settings), "verified": self.fit.verified}
        return {"stage": self.stage, "kind": self.kind, **(self.report or {}), "error": error, "fit": fit}


def deep_check(loaded: LoadedRecipe, options: DeepOptions, tell: Callable[[str], None]) -> list[Finding]:
    """Looks into every training stage; writes nothing but a temporary folder.

    Args:
        loaded: The recipe.
        options: How to look.
        tell: Takes a line about what is being done.

    Returns:
        What was found, in the order in which the stages run; a stage that cannot be opened does not hide the others.
    """
    with tempfile.TemporaryDirectory(prefix="prefopt-check-") as folder:
        return _Check(loaded, options, Path(folder), tell).findings()


class _Check:
    def __init__(self, loaded: LoadedRecipe, options: DeepOptions, folder: Path, tell: Callable[[str], None]) -> None:
        self._recipe = loaded.recipe
        self._options = options
        self._folder = folder
        self._tell = tell
        self._registry = Registry()
        root = run_folder(loaded.recipe.name, options.out)
        hashes = HashCache(cache_folder(root) / "hashes.json")
        self._keys = Keys(loaded.recipe, self._registry, hashes)
        plans = Planner(RunDirectory(root), self._keys, hashes).everything(nodes(loaded.recipe))
        self._plans: dict[str, Plan] = {plan.node.name: plan for plan in plans}
        self._looks = 0

    def findings(self) -> list[Finding]:
        start_server(self._registry.preload, server_log(self._folder / "stage.log"))
        trained = [plan.node for plan in self._plans.values() if isinstance(plan.node.spec, OptimisationSpec)]
        return [self._finding(node) for node in trained]

    def _finding(self, node: Node) -> Finding:
        self._tell(f"{node.name}: opening data and model, and making a step of the longest rows")
        report, error = self._look(node, node.spec)
        if report is None:
            return Finding(node.name, node.kind, None, error)
        fit = None
        problem = _problem(node.name, report)
        if self._options.fit:
            try:
                fit = self._fit(node, report)
                problem = _problem(node.name, {**report, "memory": {**report["memory"], "fits": True}})
            except PrefoptError as nothing_fits:
                problem = problem or nothing_fits
        return Finding(node.name, node.kind, report, problem, fit)

    def _look(self, node: Node, spec: AnyStage) -> tuple[Mapping[str, Any] | None, PrefoptError | None]:
        """The report of a stage, with a real step where it fits by the estimate; or why there is none."""
        try:
            report = {**self._part(ESTIMATE, node, spec), "proofs": None}
            report["memory"] = {**report["memory"], "measured": None}
            if report["memory"]["fits"]:
                batch = self._part(WHOLE_BATCH, node, spec)
                report["memory"]["measured"], report["proofs"] = batch["measured"], batch["proofs"]
                report["problems"] = [*report["problems"], *batch["problems"]]
        except PrefoptError as error:
            return None, error
        return report, None

    def _part(self, module: str, node: Node, spec: AnyStage) -> dict[str, Any]:
        self._looks += 1
        folder = self._folder / f"{self._looks}"
        process = StageProcess(self._job(module, node, spec, folder))
        try:
            end = process.outcome(lambda message: None)
        finally:
            process.close()
        if isinstance(end, Failed):
            raise end.error
        report: dict[str, Any] = read_json(folder / REPORT)
        return report

    def _job(self, module: str, node: Node, spec: AnyStage, folder: Path) -> Job:
        there = {name: self._plans[name] for name in node.inputs if self._plans[name].manifest is not None}
        limit = {} if self._options.memory is None else {MEMORY_VARIABLE: str(self._options.memory)}
        return Job(
            recipe=self._recipe,
            stage=node.name,
            spec=spec,
            module=module,
            key=StageKey({"deep": node.name}),
            seed=self._keys.seed(node),
            directory=folder,
            inputs={name: _reference(plan) for name, plan in there.items()},
            run_name=self._recipe.name,
            log_file=self._folder / "stage.log",
            lock_file=self._folder / f"{self._looks}.lock",
            cache=self._folder,
            ledger=self._folder / "ledger",
            uses_torch=True,
            trust_remote_code=self._options.trust_remote_code,
            environment={**os.environ, **limit},
        )

    def _fit(self, node: Node, report: Mapping[str, Any]) -> Fit:
        """The largest batch that fits by the estimate and in a real step."""
        spec = node.spec
        assert isinstance(spec, OptimisationSpec)
        for settings in candidates(spec, report["memory"]):
            self._tell(f"{node.name}: a step with " + ", ".join(f"{key} {value}" for key, value in settings.items()))
            found, error = self._look(node, spec.model_copy(update=settings))
            if found is None:
                assert error is not None
                if isinstance(error, EnvironmentFault):  # it did not fit after all
                    continue
                raise error
            memory = found["memory"]
            if memory["fits"] and (memory["measured"] or 0) <= (memory["limit"] or float("inf")):
                changed = {key: value for key, value in settings.items() if value != getattr(spec, key)}
                return Fit(node.name, changed, memory["measured"])
        raise _too_much(node.name, report["memory"])


def candidates(spec: OptimisationSpec, memory: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """Batch sizes that fit by the estimate, largest first; rows of an optimiser step stay as many as they are.

    Args:
        spec: The stage's options.
        memory: The `memory` of its report.

    Raises:
        EnvironmentFault: When the system does not say how much memory there is.
    """
    if memory["limit"] is None:
        raise EnvironmentFault("this system does not say how much memory it has", "give it: --memory 8GiB")
    estimate, room = Estimate.from_json(memory), HEADROOM * memory["limit"]
    step = rows_per_step(spec)
    evaluation = next(
        (rows for rows in range(spec.per_device_eval_batch_size, 0, -1) if estimate.with_rows(1, rows, 1).peak <= room),
        0,
    )
    estimates_kl = isinstance(spec, KTOSpec) and spec.loss_type in ESTIMATES_KL
    least = 2 if estimates_kl else 1  # from the other rows of a pass
    for rows in range(step if evaluation else 0, least - 1, -1):
        if step % rows or estimate.with_rows(rows, evaluation, step // rows).peak > room:
            continue
        settings = {"per_device_train_batch_size": rows, "per_device_eval_batch_size": evaluation}
        if isinstance(spec, TrainingSpec):
            settings["gradient_accumulation_steps"] = step // rows
        yield settings


def rows_per_step(spec: OptimisationSpec) -> int:
    """Rows of an optimiser step."""
    if isinstance(spec, OnlineSpec):
        return spec.rows_per_step
    assert isinstance(spec, TrainingSpec)
    return spec.per_device_train_batch_size * spec.gradient_accumulation_steps


def _reference(plan: Plan) -> InputRef:
    assert plan.directory is not None and plan.manifest is not None
    return InputRef(plan.directory.absolute(), plan.manifest.sha256)


def _problem(stage: str, report: Mapping[str, Any]) -> PrefoptError | None:
    problems: Sequence[str] = report["problems"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return DataError(f"stage {stage}: {problems[0]}{more}", "see the tokens above, and set model.chat_template")
    return None if report["memory"]["fits"] else _too_much(stage, report["memory"])


def _too_much(stage: str, memory: Mapping[str, Any]) -> EnvironmentFault:
    needed, limit = (size_text(memory[name]) for name in ("estimate", "limit"))
    return EnvironmentFault(
        f"stage {stage} needs about {needed}, and {limit} are there",
        "`prefopt check RECIPE --deep --fit` finds batch sizes that fit; otherwise set activation_checkpointing: true, "
        "or lower max_length",
    )
