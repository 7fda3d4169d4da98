"""Runs the stages of a recipe that are not done, each in its own process, and tells what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefopt.errors import GateRefused, InputError, Interrupted, PrefoptError
from prefopt.evaluation import gates
from prefopt.pipeline.graph import Node, and_after, nodes
from prefopt.pipeline.keys import Keys
from prefopt.pipeline.messages import Committed, Failed, InputRef, Job, Log, Message, Progress
from prefopt.pipeline.plan import Plan, Planner
from prefopt.pipeline.preflight import needed_bytes, require_room
from prefopt.pipeline.process import StageProcess, server_log, start_server
from prefopt.pipeline.provenance import recipe_changed, write_provenance
from prefopt.pipeline.signals import StopRequests
from prefopt.pipeline.summary import RunOptions, RunSummary, StageOutcome, State, Watcher, resume_command
from prefopt.recipe.load import LoadedRecipe
from prefopt.store import manifest as manifests
from prefopt.store.files import make_folder, remove, set_aside
from prefopt.store.hashing import HashCache
from prefopt.store.manifest import Manifest
from prefopt.store.run import SEEDS, RunDirectory
from prefopt.store.secrets import redact
from prefopt.tracking.progress import shown_metrics

_REPLACED = "replaced"
_OF_THE_TRACKER = "wandb: "


class RemoteError(Exception):
    """Where an error was raised in a stage's process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run_recipe(loaded: LoadedRecipe, options: RunOptions, watcher: Watcher) -> RunSummary:
    """Runs what is not done.

    Args:
        loaded: The recipe.
        options: How to run it.
        watcher: Is told what happens.

    Returns:
        What came of every stage. Errors of stages are in it and not raised, so that one does not hide another.

    Raises:
        InputError: When `only` or `start_from` name what is not there or not ready.
        EnvironmentFault: When the run folder is locked, cannot be written, or has too little room.
    """
    return Runner(loaded, options, watcher).run()


def run_folder(name: str, out: Path | None) -> Path:
    """Where a recipe's run goes."""
    return out if out is not None else Path("runs") / name


def cache_folder(run: Path) -> Path:
    """Where things that can be made again are kept: `PREFOPT_CACHE`, or `.cache` beside the run folder.

    The further seeds of a run, which lie in it, share its cache.
    """
    configured = os.environ.get("PREFOPT_CACHE")
    folder = run.absolute()
    first = folder.parent.parent if folder.parent.name == SEEDS else folder
    return Path(configured).expanduser() if configured else first.parent / ".cache"


class Runner:
    """One invocation of `prefopt run`.

    Args:
        loaded: The recipe.
        options: How to run it.
        watcher: Is told what happens.
    """

    def __init__(self, loaded: LoadedRecipe, options: RunOptions, watcher: Watcher) -> None:
        self._loaded = loaded
        self._recipe = loaded.recipe
        self._options = options
        self._watcher = watcher
        self._graph = nodes(loaded.recipe)
        self._selected = self._selection()
        self._run = RunDirectory(run_folder(self._recipe.name, options.out))
        self._cache_folder = cache_folder(self._run.root)
        self._hashes = HashCache(self._cache_folder / "hashes.json")
        self._keys = Keys(self._recipe, options.registry, self._hashes)
        rerun = and_after(self._graph, options.start_from) if options.start_from else frozenset()
        self._planner = Planner(self._run, self._keys, self._hashes, rerun=rerun, borrow=self._borrow)
        self._manifests: dict[str, Manifest] = {}
        self._folders: dict[str, Path] = {}
        self._stop = StopRequests()
        self._told_to_wait = False
        self._told: set[str] = set()

    def run(self) -> RunSummary:
        """Judge everything, then run what must; see `run_recipe`."""
        gates.check_names(self._loaded)
        if self._options.dry_run:
            return self._summary([self._planned(plan) for plan in self._planner.everything(self._graph)])
        make_folder(self._run.root)
        with self._run.lock(self._watcher.message):
            plans = self._planner.everything(self._graph)
            self._require_inputs(plans)
            to_run = [plan for plan in plans if not plan.done and plan.node.name in self._selected]
            # Gates, say: nothing runs again, and whoever judges the folder later must know them.
            changed = recipe_changed(self._run, self._loaded)
            if to_run:
                self._prepare(to_run)
            elif changed:
                write_provenance(self._run, self._loaded)
            with self._stop:
                outcomes = [self._stage(index, plan) for index, plan in enumerate(plans, start=1)]
            self._hashes.save()
            summary = self._summary(outcomes)
            if to_run:
                self._run.event({"event": "run_finished", "exit_code": summary.exit_code})
            # Who asked to stop is not kept waiting for a page that the next run draws anew.
            wanted = self._options.report and not self._stop.stopping
            if wanted and (to_run or changed or not self._run.report.exists()):
                summary = replace(summary, report=self._render())
        return summary

    # -- before anything runs ------------------------------------------------------------------------------------------

    def _selection(self) -> frozenset[str]:
        names = [node.name for node in self._graph]
        for name in (*self._options.only, *filter(None, [self._options.start_from])):
            if name not in names:
                raise InputError(f"the recipe has no stage {name!r}", f"stages: {', '.join(names)}")
        return frozenset(self._options.only or names)

    def _require_inputs(self, plans: Sequence[Plan]) -> None:
        done = {plan.node.name for plan in plans if plan.done}
        for node in self._graph:
            missing = [name for name in node.inputs if name not in done | self._selected]
            if node.name in self._selected and missing and node.name not in done:
                raise InputError(
                    f"--only {node.name}: it reads {', '.join(missing)}, which is not done",
                    "add " + " ".join(f"--only {name}" for name in missing) + ", or leave --only out",
                )

    def _prepare(self, to_run: Sequence[Plan]) -> None:
        stages = [plan.node.spec for plan in to_run]
        require_room(self._run.root, needed_bytes(stages, self._recipe.model))
        # Libraries are imported there while files are written and hashed here.
        start_server(self._options.registry.preload, server_log(self._run.log_file(to_run[0].node.name)))
        for folder in (self._run.root, *(self._run.stage_root(node.name) for node in self._graph)):
            for leftover in folder.glob(".*.tmp"):
                remove(leftover)
        for warning in self._loaded.warnings:
            self._watcher.message(warning)
        write_provenance(self._run, self._loaded)
        self._run.event({"event": "run_started", "pid": os.getpid(), "stages": [plan.node.name for plan in to_run]})

    def _planned(self, plan: Plan) -> StageOutcome:
        name = plan.node.name
        state: State = "done" if plan.done else "would run" if name in self._selected else "not selected"
        headline = shown_metrics(plan.manifest.metrics) if plan.manifest is not None else plan.why
        return StageOutcome(name, plan.node.kind, state, headline=headline, directory=plan.directory)

    def _borrow(self, stage: str, directory: Path) -> None:
        """Links what another run has finished under the same key; the link is what would have been made here."""
        if self._options.dry_run:
            return
        for root in self._options.borrow_from:
            source = RunDirectory(root).stage(stage, directory.name)
            if (source / manifests.MANIFEST).is_file():
                make_folder(directory.parent)
                directory.symlink_to(os.path.relpath(source.resolve(), directory.parent.resolve()))
                self._watcher.message(f"{stage}: as in {root}")
                return

    # -- one stage -----------------------------------------------------------------------------------------------------

    def _stage(self, index: int, plan: Plan) -> StageOutcome:
        node = plan.node
        missing = [name for name in (*node.inputs, *node.after) if name not in self._manifests]
        if not plan.done and node.name not in self._selected:
            return StageOutcome(node.name, node.kind, "not selected", headline=plan.why, directory=plan.directory)
        if missing:
            why = f"waits for {', '.join(missing)}"
            return StageOutcome(node.name, node.kind, "blocked", headline=why, directory=plan.directory)
        try:
            if self._stop.stopping and not plan.done:
                raise Interrupted(f"the run was stopped before stage {node.name}")
            # Its inputs may have been made since the first judgement.
            plan = self._planner.examine(node, self._manifests)
            if plan.manifest is not None:
                return self._already_done(plan, plan.manifest)
            return self._run_stage(index, plan)
        except PrefoptError as error:
            return self._not_done(plan, Failed(error, ""), 0.0)

    def _already_done(self, plan: Plan, manifest: Manifest) -> StageOutcome:
        self._accept(plan, manifest)
        headline = shown_metrics(manifest.metrics)
        self._watcher.stage_finished(plan.node.name, "skipped", 0.0, headline)
        return StageOutcome(plan.node.name, plan.node.kind, "skipped", 0.0, headline, manifest.metrics, plan.directory)

    def _accept(self, plan: Plan, manifest: Manifest) -> None:
        """Makes a finished stage the current one, and lets others read it when its gates hold."""
        assert plan.key is not None and plan.directory is not None
        self._run.set_current(plan.node.name, plan.key.digest)
        gates.require(plan.node.name, plan.node.spec.require, manifest.metrics, plan.directory)
        self._manifests[plan.node.name] = manifest
        self._folders[plan.node.name] = plan.directory

    def _run_stage(self, index: int, plan: Plan) -> StageOutcome:
        assert plan.key is not None and plan.directory is not None
        name, kind = plan.node.name, plan.node.kind
        self._watcher.stage_started(name, kind, index, len(self._graph))
        self._watcher.message(f"{name}: {plan.why}")
        self._run.event({"event": "stage_started", "stage": name, "key": plan.key.digest, "why": plan.why})
        replaced = self._make_way(plan)
        self._run.set_started(name, plan.key.digest)
        start = time.monotonic()
        process = StageProcess(self._job(plan))
        try:
            self._stop.attach(process)
            end = process.outcome(lambda message: self._hear(name, message))
        finally:
            self._stop.attach(None)
            process.close()
        seconds = time.monotonic() - start
        if isinstance(end, Failed):
            return self._not_done(plan, end, seconds)
        return self._done(plan, end, seconds, replaced)

    def _make_way(self, plan: Plan) -> Path | None:
        """Moves a finished artefact aside that is damaged or asked for anew; returns what to remove afterwards."""
        assert plan.directory is not None
        if not plan.committed:
            return None
        aside = set_aside(plan.directory, "torn" if plan.damage else _REPLACED)
        if plan.damage:
            self._watcher.message(f"{plan.node.name}: the damaged artefact is kept as {aside}")
        return None if plan.damage else aside

    def _job(self, plan: Plan) -> Job:
        assert plan.key is not None and plan.directory is not None
        node = plan.node
        return Job(
            recipe=self._recipe,
            stage=node.name,
            spec=node.spec,
            module=self._options.registry.module(node.kind),
            key=plan.key,
            seed=self._keys.seed(node),
            directory=plan.directory.absolute(),
            inputs={
                name: InputRef(self._folders[name].absolute(), self._manifests[name].sha256) for name in node.inputs
            },
            run_name=self._run.root.absolute().name,
            log_file=self._run.log_file(node.name).absolute(),
            lock_file=self._run.stage_lock(node.name).absolute(),
            cache=self._cache_folder,
            ledger=self._run.ledger.absolute(),
            uses_torch=self._options.registry.uses_torch,
            allow_inexact_resume=self._options.allow_inexact_resume,
            trust_remote_code=self._options.trust_remote_code,
            environment=dict(os.environ),
        )

    def _hear(self, stage: str, message: Message | None) -> None:
        if self._stop.stopping and not self._told_to_wait:
            self._told_to_wait = True
            self._watcher.message(f"stopping: {stage} saves a checkpoint first; Ctrl-C again aborts at once")
        if isinstance(message, Progress):
            self._watcher.progress(stage, message.step, message.total, message.metrics)
        elif isinstance(message, Log) and not self._said_before(message.text):
            self._watcher.message(f"{stage}: {message.text}")

    def _said_before(self, text: str) -> bool:
        """Whether an earlier stage said the same about its tracker: no key or no server is a matter of the run."""
        if not text.startswith(_OF_THE_TRACKER):
            return False
        said = text in self._told
        self._told.add(text)
        return said

    # -- how a stage ended ---------------------------------------------------------------------------------------------

    def _done(self, plan: Plan, end: Committed, seconds: float, replaced: Path | None) -> StageOutcome:
        assert plan.key is not None and plan.directory is not None
        name = plan.node.name
        manifest = manifests.verify(plan.directory, False, self._hashes)
        self._run.event({"event": "stage_done", "stage": name, "key": plan.key.digest, "seconds": round(seconds, 3)})
        if replaced is not None:
            remove(replaced)
        try:
            self._accept(plan, manifest)
        except PrefoptError as error:
            return self._not_done(plan, Failed(error, ""), seconds)
        headline = shown_metrics(end.metrics)
        self._watcher.stage_finished(name, "done", seconds, headline)
        return StageOutcome(name, plan.node.kind, "done", seconds, headline, end.metrics, plan.directory)

    def _not_done(self, plan: Plan, end: Failed, seconds: float) -> StageOutcome:
        state, error = self._judge(plan.node, end.error)
        error.message, error.remedy = redact(error.message), redact(error.remedy)
        name, kind = plan.node.name, plan.node.kind
        key = plan.key.digest if plan.key is not None else None
        self._run.event(
            {"event": f"stage_{state}", "stage": name, "key": key, "exit_code": error.exit_code, "error": str(error)}
        )
        self._watcher.stage_finished(name, state, seconds, error.message.splitlines()[0])
        if end.traceback:
            # Shown by --debug, which prints the error with its cause.
            error.__cause__ = RemoteError(end.traceback)
        headline = error.message.splitlines()[0]
        return StageOutcome(name, kind, state, seconds, headline, directory=plan.directory, error=error)

    def _judge(self, node: Node, error: PrefoptError) -> tuple[State, PrefoptError]:
        again = f"go on with: {resume_command(self._loaded, self._options)}"
        if self._stop.aborted:
            return "interrupted", Interrupted(f"stage {node.name} was aborted; its last checkpoint is kept", again)
        if self._stop.stopping:
            # Also a process that was stopped before it could listen, or failed on its way out.
            return "interrupted", Interrupted(error.message, again)
        if isinstance(error, GateRefused):
            return "refused", error
        if isinstance(error, Interrupted):
            return "waiting", Interrupted(error.message, error.remedy or again)
        return "failed", error

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _summary(self, outcomes: Sequence[StageOutcome]) -> RunSummary:
        report = self._run.report if self._run.report.exists() else None
        return RunSummary(self._recipe.name, self._run.root, tuple(outcomes), report)

    def _render(self) -> Path | None:
        try:
            from prefopt.report import render

            return render(self._run.root)
        # The report shows what was done; whatever is wrong with it, what was done stays done.
        except Exception as error:
            self._run.event({"event": "report_failed", "error": f"{type(error).__name__}: {error}"})
            self._watcher.message(f"the report could not be made: {type(error).__name__}: {error}")
            return None
