"""A whole small experiment, whose runner and stage processes can be struck at their n-th file operation.

The runner is forked from the test, and the process of a stage from the runner, where `prefopt run` forks it from a warm
server. What runs in both is prefopt's own.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prefopt.pipeline import process, runner, worker
from prefopt.pipeline.runner import run_recipe
from prefopt.pipeline.stages import PRELOAD, Registry
from prefopt.pipeline.summary import RunOptions
from prefopt.recipe.load import load
from prefopt.store import manifest as manifests
from tests.end_to_end.small import Snapshot, finished, folder
from tests.faults.injection import SABOTEUR, Ended, Operation, forked

RECIPE = """\
name: faults
seed: 5
model: {model_name_or_path: base, dtype: float32, lora: {lora_r: 4, lora_alpha: 8, lora_target_modules: all-linear}}
data:
  texts: {path: toy, name: corpus, max_samples: 40, eval_fraction: 0.1}
  answers: {path: toy, name: demonstrations, max_samples: 24, eval_fraction: 0.2}
  asked: {path: toy, name: prompts, max_samples: 24, eval_fraction: 0.3}
stages:
  base:
    {kind: pretrain, data: texts, vocab_size: 320, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1,
     warmup_steps: 0, max_steps: 2, save_steps: 1, logging_steps: 1, per_device_train_batch_size: 4}
  sft: {kind: sft, data: answers, max_steps: 2, save_steps: 1, logging_steps: 1, per_device_train_batch_size: 4}
  pairs:
    {kind: collect, policies: sft, prompts: asked, samples_per_prompt: 2, judge: {model: gold, labels: sampled},
     max_new_tokens: 6, per_device_eval_batch_size: 8}
  reward:
    {kind: reward, init: sft, data: pairs, max_steps: 2, save_steps: 1, logging_steps: 1,
     per_device_train_batch_size: 4}
  dpo:
    {kind: dpo, init: sft, data: pairs, max_steps: 2, save_steps: 1, logging_steps: 1, per_device_train_batch_size: 4}
  ppo:
    {kind: ppo, init: sft, prompts: asked, reward: reward, max_new_tokens: 6, rollout_batch_size: 8,
     total_episodes: 16, num_ppo_epochs: 1, save_steps: 1, logging_steps: 1, per_device_train_batch_size: 4}
  eval:
    {kind: evaluate, policies: [sft, dpo], baseline: sft, data: pairs, prompts: asked, reward: gold, max_prompts: 6,
     samples_per_prompt: 1, max_new_tokens: 6}
"""
STAGES = ("base", "sft", "pairs", "reward", "dpo", "ppo", "eval")


class Listener:
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def stage_started(self, stage: str, kind: str, index: int, total: int) -> None:
        """Nothing to remember."""

    def progress(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Nothing to remember."""

    def stage_finished(self, stage: str, state: str, seconds: float, headline: str = "") -> None:
        """Nothing to remember."""

    def message(self, text: str) -> None:
        self.messages.append(text)


@dataclass(frozen=True)
class Strike:
    """What is to happen where.

    Attributes:
        side: "runner", or the name of the stage whose process is meant.
        at: Which file operation below the run folder; None: they are only noted.
        act: What is done there.
    """

    side: str
    at: int | None = None
    act: Callable[[Operation], None] = lambda operation: None


@dataclass
class Experiment:
    """A recipe in a folder of its own.

    Attributes:
        overrides: As of `--set`.
        prepare: Done in the runner's process before anything else: what a test changes there ends with it.
    """

    directory: Path
    recipe: str = RECIPE
    overrides: tuple[str, ...] = ()
    registry: Registry = field(default_factory=Registry)
    prepare: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / "recipe.yaml"
        self.path.write_text(self.recipe)
        self.out = self.directory / "runs" / "faults"
        self._noted = self.directory / "operations.json"

    def run(self, strike: Strike | None = None, **options: Any) -> Ended:
        """Runs it in a process of its own.

        Returns:
            `states` by stage, `errors` with their exit codes, `said`, and `operations` where a strike notes them.
        """
        self._noted.unlink(missing_ok=True)
        if self.registry.uses_torch:
            importlib.import_module(PRELOAD)  # here, once for all that is forked
        ended = forked(lambda: self._run(strike, options), self.directory / "said")
        return ended

    def operations(self, side: str, **options: Any) -> list[Operation]:
        """The file operations of a side in a run that nothing interrupts."""
        ended = self.run(Strike(side), **options)
        assert not ended.error, ended.error
        assert not ended.value["errors"], ended.value["errors"]
        return [Operation(*each) for each in json.loads(self._noted.read_text())]

    def _run(self, strike: Strike | None, options: dict[str, Any]) -> dict[str, Any]:
        self.prepare()
        os.chdir(self.directory)
        fork_stages()
        if strike is not None:
            self._arm(strike)
        listener = Listener()
        settings = RunOptions(**{"out": self.out, "registry": self.registry, "report": False, **options})
        summary = run_recipe(load(self.path, self.overrides), settings, listener)
        if strike is not None and strike.side == "runner":
            self._note()
        return {
            "states": {outcome.stage: outcome.state for outcome in summary.stages},
            "errors": {
                outcome.stage: [outcome.error.exit_code, str(outcome.error)]
                for outcome in summary.stages
                if outcome.error is not None
            },
            "exit_code": summary.exit_code,
            "said": listener.messages,
        }

    def _arm(self, strike: Strike) -> None:
        if strike.side == "runner":
            SABOTEUR.watch(self.out, strike.at, strike.act)
            return
        main = worker.main

        def struck(job: Any, connection: Any) -> None:
            if job.stage == strike.side:
                SABOTEUR.watch(self.out, strike.at, strike.act)
            main(job, connection)
            if job.stage == strike.side:
                self._note()

        worker.main = struck

    def _note(self) -> None:
        SABOTEUR.sleep()
        self._noted.write_text(json.dumps([[each.what, each.path, each.to] for each in SABOTEUR.operations]))

    # -- what lies there -----------------------------------------------------------------------------------------------

    def folder(self, stage: str) -> Path:
        found = folder(self.out, stage)
        assert found is not None, f"{stage} was never started"
        return found

    def results(self, stages: tuple[str, ...] = STAGES) -> dict[str, str]:
        """What stages came to: the hash over the outputs of each, every byte of which is read."""
        return {stage: manifests.verify(self.folder(stage), full=True).sha256 for stage in stages}

    def finished(self) -> Snapshot:
        return finished(self.out)

    def copy(self, directory: Path, without: tuple[str, ...] = (), **changes: Any) -> Experiment:
        """The same experiment elsewhere, as it was before some stages ran."""
        other = Experiment(directory, **{"recipe": self.recipe, "registry": self.registry, **changes})
        shutil.copytree(self.out, other.out, symlinks=True)
        for stage in without:
            shutil.rmtree(other.out / "stages" / stage)
        return other


def fork_stages() -> None:
    """Forks the processes of stages from this one, which has all libraries, and needs no server."""
    context = multiprocessing.get_context("fork")
    process.multiprocessing = SimpleNamespace(get_context=lambda name: context)
    process.start_server = runner.start_server = lambda preload, log_file: None
