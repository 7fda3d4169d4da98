"""`prefopt check --deep` of one stage, in a process of its own: its tokens, and an estimate of its memory.

It is run as stages are, and writes `deep.json` in place of an artefact. Memory is estimated from two small steps, with
one and with two of the longest row. A step with the whole batch is made by `prefopt.pipeline.deep_batch`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from prefopt.data.token_rows import TokenRows
from prefopt.losses.token_statistics import MAX_LOGITS
from prefopt.models.loading import device
from prefopt.pipeline.adapters import Job, Opened
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.deep_check import MEMORY_VARIABLE, REPORT
from prefopt.pipeline.deep_tokens import sample, token_problems
from prefopt.pipeline.estimate import UPDATE, Estimate, Phase
from prefopt.pipeline.stand_ins import stand_ins
from prefopt.recipe.schema import (
    DPOSpec,
    GroupSpec,
    KTOSpec,
    OnlineSpec,
    OptimisationSpec,
    PPOSpec,
    RewardSpec,
    SFTSpec,
    TrainingSpec,
)
from prefopt.store.files import write_json
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.explorer import CHECKED
from prefopt.trainers.memory import (
    FirstStep,
    PeakBytes,
    ProcessPeak,
    available_bytes,
    release,
    trained_bytes,
    weight_bytes,
)
from prefopt.trainers.pairs import tokens_per_pass
from prefopt.trainers.trl import HeadTile

# Rows of a rollout for a row of an update: sampling also has peaks that do not depend on rows, such as merging the
# adapter, and they must not be what is seen. The second look is then at one row for each row of an update.
_ROLLOUT = CHECKED
# The logits of a few tokens, their logarithms and their probabilities.
_LOGITS_AT_ONCE = 3
Row = Mapping[str, Any]


def run(spec: OptimisationSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Look into a training stage; writes `deep.json`."""
    complete, notes = stand_ins(inputs, context)
    look = Look.into(spec, complete, context)
    estimate = look.estimate()
    limit = int(os.environ[MEMORY_VARIABLE]) if MEMORY_VARIABLE in os.environ else available_bytes(look.device)
    rows = look.stage.rows
    report = {
        "stage": context.stage,
        "kind": spec.kind,
        "stand_ins": notes,
        "rows": {"train": len(rows.train), "evaluation": len(rows.evaluation), "longest": look.longest},
        "memory": {
            **estimate.to_json(),
            "device": look.device.type,
            "limit": limit,
            "fits": limit is None or estimate.peak <= limit,
            "estimate": estimate.peak,
        },
        "tokens": sample(look.stage.tokenizer, rows.train[0]),
        "problems": token_problems(look.stage.tokenizer, rows.train),
    }
    write_json(context.directory / REPORT, report)
    return StageResult(metrics={}, outputs=[REPORT])


class Look:
    """Trains a stage for a step or two, on its longest rows.

    Attributes:
        device: Where.
        spec: The stage's options.
        stage: The stage, opened.
        train: Its rows, longest first.
        evaluation: Its held-out rows, longest first.
        longest: Tokens of the longest row.
    """

    @classmethod
    def into(cls, spec: OptimisationSpec, inputs: Inputs, context: StageContext) -> Look:
        """Open a stage whose inputs are all there."""
        return cls(spec, import_module(f"prefopt.pipeline.stages.{spec.kind}").opened(spec, inputs, context))

    def __init__(self, spec: OptimisationSpec, stage: Opened) -> None:
        self.device = device()
        self.spec = spec
        self.stage = stage
        self.train = _longest_first(stage.rows.train, spec)
        self.evaluation = _longest_first(stage.rows.evaluation, spec)
        self._online = isinstance(spec, OnlineSpec)
        # The loss of kto compares the rows of a pass.
        self._least = 2 if isinstance(spec, KTOSpec) else 1
        self._item_size, self._vocabulary = 4, 0  # of what is trained
        self.longest = row_length(self.train[0], spec)

    def estimate(self) -> Estimate:
        """From steps of the fewest rows and of twice as many, and rollouts of a few more."""
        one, two = self._probe(self._least), self._probe(2 * self._least)
        # Only now: the first step of a process loads kernels that stay.
        process = ProcessPeak(self.device)
        rows = batch_rows(self.spec, len(self.train), len(self.evaluation), self.longest)
        phases = tuple(self._phase(name, rows[name], one[name], two[name]) for name in rows)
        trained = one["trained"]
        passes = passes_per_step(self.spec)
        return Estimate(process.level, one["weights"], trained, 2 * trained, passes, phases)

    def _phase(self, name: str, rows: int, one: int, two: int) -> Phase:
        if isinstance(self.spec, DPOSpec | RewardSpec):
            return self._phase_of_pairs(name, rows, one, two)
        seen = self._least * (_ROLLOUT if self._online and name != UPDATE else 1)  # rows that `one` is of
        if not self._in_tiles(name):
            return Phase(name, rows, max(0, 2 * one - two), (two - one) // seen)
        row = (self.evaluation if name == "evaluation" else self.train)[0]
        tile = HeadTile(self._vocabulary, self._item_size, on_cpu=self.device.type == "cpu")
        tokens = tile.tokens(len(row["prompt_ids"]), row_length(row, self.spec) - len(row["prompt_ids"]))
        one, two = one - tile.allocated(seen * tokens), two - tile.allocated(2 * seen * tokens)
        return Phase(name, rows, max(0, 2 * one - two), (two - one) // seen, tile.taken(tokens), tile.taken())

    def _in_tiles(self, name: str) -> bool:
        """Whether a phase computes its logits in TRL's tiles."""
        return isinstance(self.spec, SFTSpec | KTOSpec) or (isinstance(self.spec, GroupSpec) and name == UPDATE)

    def _phase_of_pairs(self, name: str, rows: int, one: int, two: int) -> Phase:
        """Passes have a number of tokens, and the head a number of logits, however many rows there are."""
        at_most = None if name == "evaluation" else max(1, tokens_per_pass(self.device) // self.longest)
        row = (self.evaluation if name == "evaluation" else self.train)[0]
        logits = 0 if isinstance(self.spec, RewardSpec) else 4 * _LOGITS_AT_ONCE * self._vocabulary
        tokens, most = len(row["chosen_ids"]) + len(row["rejected_ids"]), max(1, MAX_LOGITS // self._vocabulary)
        one, two = one - min(tokens, most) * logits, two - min(2 * tokens, most) * logits
        return Phase(name, rows, max(0, 2 * one - two), two - one, tokens * logits, most * logits, at_most)

    def _probe(self, rows: int) -> dict[str, int]:
        """Peak bytes of every phase with a number of rows, and the bytes of the weights."""
        others = rows * (_ROLLOUT if self._online else 1)
        trainer = self.trainer(rows, others, [*self.train[:1]] * rows, [*self.evaluation[:1]] * rows, steps=1)
        first = FirstStep(trainer.model, self.device, count=True)
        trainer.add_callback(first)
        found = {"weights": weight_bytes(trainer.model), "trained": trained_bytes(trainer.model)}
        self._item_size = next(trainer.model.parameters()).itemsize
        self._vocabulary = trainer.model.config.get_text_config().vocab_size
        trainer.train()
        found |= {UPDATE: first.update}
        if isinstance(self.spec, GroupSpec):  # both go through the model as a whole, so one is not told from the other
            return found | {"sampling": max(first.sampling, first.judging)}
        if self._online:
            return found | {"sampling": first.sampling, "judging": first.judging}
        peak = PeakBytes(self.device)
        peak.start()
        if trainer.eval_dataset is not None:
            trainer.evaluate()
        elif isinstance(self.spec, DPOSpec):
            trainer.evaluate([dict(row) for row in [*self.train[:1]] * rows])
        found["evaluation"] = found["reference"] = peak.stop()  # of a row as much, without gradients
        return found

    def trainer(
        self, batch: int, evaluation: int, rows: Sequence[Row], held_out: Sequence[Row], *, steps: int, passes: int = 1
    ) -> CheckpointedTrainer:
        """A trainer on a fresh model, which is let go of with it; nothing is saved."""
        release()
        spec = _short(self.spec, batch, evaluation, steps, passes)
        trainer = self.stage.trainer(Job(spec, self.stage.load(), list(rows), list(held_out), []))
        trainer.args.save_strategy = type(trainer.args.save_strategy)("no")
        if isinstance(spec, OnlineSpec):
            trainer.args.min_new_tokens = spec.max_new_tokens  # no sampled completion can be longer
        return trainer


def row_length(row: Row, spec: OptimisationSpec) -> int:
    """Tokens of a row where it is computed: both answers of a pair, and all that a completion may have."""
    if "input_ids" in row:
        return len(row["input_ids"])
    completions = [len(row[name]) for name in ("completion_ids", "chosen_ids", "rejected_ids") if name in row]
    return len(row["prompt_ids"]) + (sum(completions) if completions else spec.max_new_tokens)  # type: ignore[attr-defined]


def _longest_first(rows: Sequence[Row], spec: OptimisationSpec) -> Sequence[Row]:
    if isinstance(rows, TokenRows):
        lengths = sum(rows.lengths(part) for part in ("prompt_ids", "chosen_ids", "rejected_ids"))
        return rows.select(np.argsort(-np.asarray(lengths), kind="stable"))
    return sorted(rows, key=lambda row: -row_length(row, spec))


def batch_rows(spec: OptimisationSpec, train: int, held_out: int, longest: int) -> dict[str, int]:
    """Phase → rows of its batch.

    Args:
        spec: The stage's options.
        train: Rows to train on.
        held_out: Rows to evaluate on.
        longest: Tokens of the longest row.
    """
    rows = {UPDATE: spec.per_device_train_batch_size}
    if isinstance(spec, OnlineSpec):
        phases = ("sampling",) if isinstance(spec, GroupSpec) else ("sampling", "judging")
        return rows | dict.fromkeys(phases, min(spec.per_device_eval_batch_size, spec.rollout_batch_size))
    if held_out:
        rows["evaluation"] = min(spec.per_device_eval_batch_size, held_out)
    if isinstance(spec, DPOSpec):
        rows["reference"] = min(train, max(1, tokens_per_pass(device()) // longest))
    return rows


def passes_per_step(spec: OptimisationSpec) -> int:
    """Passes of an optimiser step."""
    if isinstance(spec, OnlineSpec):
        return max(1, spec.rows_per_step // spec.per_device_train_batch_size)
    assert isinstance(spec, TrainingSpec)
    return spec.gradient_accumulation_steps


def _short(spec: OptimisationSpec, batch: int, evaluation: int, steps: int, passes: int) -> OptimisationSpec:
    """The stage's options for a few steps that log everything and save nothing."""
    same = {"per_device_train_batch_size": batch, "per_device_eval_batch_size": evaluation, "logging_steps": 1}
    if not isinstance(spec, OnlineSpec):
        more = {"max_steps": steps, "gradient_accumulation_steps": passes, "eval_steps": None}
        return spec.model_copy(update={**same, **more, "train_sampling_strategy": "random"})
    # A rollout of whole batches of either kind; its scale is measured on far more samples than are needed here.
    rollout = batch * max(passes, math.ceil(evaluation / batch))
    few: dict[str, Any] = {"mask_truncated_completions": False}
    if isinstance(spec, PPOSpec):
        # Completions as long as they may be, of a policy that is trained from the first step.
        few |= {"num_ppo_epochs": 1, "samples_per_prompt": 1, "stop": (), "value_warmup_rollouts": 0}
    else:
        rollout = max(rollout, 2)
        few |= {"num_iterations": 1, "samples_per_prompt": rollout}
    few |= {"rollout_batch_size": rollout, "total_episodes": steps * rollout}
    reward = spec.reward.model_copy(update={"normalise": "none", "bound": "none"})
    return spec.model_copy(update={**same, **few, "num_mini_batches": 1, "reward": reward})
