"""What is done and what would run, and why: the same judgement for a run, a dry run and `status`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.errors import IntegrityError
from prefopt.pipeline.graph import Node
from prefopt.pipeline.keys import Keys, StageKey, changes
from prefopt.store import manifest as manifests
from prefopt.store.checkpoints import checkpoints
from prefopt.store.hashing import HashCache
from prefopt.store.manifest import Manifest
from prefopt.store.run import RunDirectory


@dataclass(frozen=True)
class Plan:
    """What is to happen with a stage.

    Attributes:
        node: The stage.
        why: Why it runs; empty when it is done.
        key: Its key; None as long as an input is not done, because the key holds the input's hash.
        directory: Where its artefact is or will be; None without a key.
        manifest: The artefact, when the stage is done.
        committed: Whether the folder holds a manifest, good or bad.
        damage: What is wrong with an artefact that was finished once; empty when nothing is.
    """

    node: Node
    why: str
    key: StageKey | None = None
    directory: Path | None = None
    manifest: Manifest | None = None
    committed: bool = False
    damage: str = ""

    @property
    def done(self) -> bool:
        """Whether the stage need not run."""
        return self.manifest is not None


class Planner:
    """Judges stages against what is on disk; writes nothing itself.

    Args:
        run: The run folder.
        keys: Computes the stages' keys.
        cache: Remembers hashes of outputs.
        rerun: Stages that run even when they are done.
        full: Hash every byte of every artefact, and not only what changed by size, time or inode.
        borrow: Called for an artefact that is not there, with the folder where it should be; it may put one there.
    """

    def __init__(
        self,
        run: RunDirectory,
        keys: Keys,
        cache: HashCache,
        *,
        rerun: frozenset[str] = frozenset(),
        full: bool = False,
        borrow: Callable[[str, Path], None] = lambda stage, directory: None,
    ) -> None:
        self._run = run
        self._keys = keys
        self._cache = cache
        self._rerun = rerun
        self._full = full
        self._borrow = borrow

    def everything(self, graph: Sequence[Node]) -> list[Plan]:
        """Plans for all stages, as far as they can be known before any of them runs."""
        plans: list[Plan] = []
        done: dict[str, Manifest] = {}
        for node in graph:
            missing = [name for name in node.inputs if name not in done]
            plan = Plan(node, f"after {', '.join(missing)}") if missing else self.examine(node, done)
            if plan.manifest is not None:
                done[node.name] = plan.manifest
            plans.append(plan)
        return plans

    def examine(self, node: Node, done: Mapping[str, Manifest]) -> Plan:
        """Judges one stage whose inputs are done.

        Args:
            node: The stage.
            done: Manifests of at least its inputs, by stage name.

        Raises:
            DataError: When a data set of the stage is not there.
            EnvironmentFault: When a local file of the recipe cannot be read.
        """
        key = self._keys.of(node, {name: done[name].sha256 for name in node.inputs})
        directory = self._run.stage(node.name, key.digest)
        if not directory.exists():
            self._borrow(node.name, directory)
        if not (directory / manifests.MANIFEST).exists():
            return Plan(node, self._why_unfinished(node, key, directory), key, directory)
        try:
            manifest = manifests.verify(directory, self._full, self._cache)
            if manifest.key != key.digest or manifest.stage != node.name:
                raise IntegrityError(f"{directory} holds the artefact of another stage or key")
        except IntegrityError as error:
            why = f"its artefact is damaged: {error.message}"
            return Plan(node, why, key, directory, committed=True, damage=error.message)
        if node.name in self._rerun:
            return Plan(node, "--from asks for it", key, directory, committed=True)
        return Plan(node, "", key, directory, manifest, committed=True)

    def _why_unfinished(self, node: Node, key: StageKey, directory: Path) -> str:
        saved = checkpoints(directory / "checkpoints")
        if saved:
            return f"was interrupted, goes on from {saved[-1].name}"
        if directory.exists():
            return "was interrupted, starts again"
        for earlier in (self._run.started(node.name), self._run.current(node.name)):
            if earlier is not None and earlier != key.short:
                different = changes(self._run.stage(node.name, earlier), key)
                return "changed: " + ("; ".join(different) or "what from is not known any more")
        return "new"
