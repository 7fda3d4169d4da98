"""Distillation: the student learns to answer under a simple context as its teacher does under a rich one.

The algorithm, in the order of this file:

1. Rows hold the student's prompt (c', z), the teacher's (c, z) and a completion that the teacher gave (`soft`: its
   target is the teacher's distribution of every token; else the token itself), or that people wrote (replay). On policy
   the student answers its prompts itself, anew in every step, and is compared with the teacher along its own answers.
2. Before the first step the student must equal the policy that it started from, and the origin is looked at.
3. Each step is the mean over the completion tokens of its rows of the loss in `prefopt.losses.distill`.
4. Every so many steps the guards look whether the student collapses (`prefopt.trainers.collapse`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import DataError, InputError
from prefopt.losses.distill import DistillTokens, Target
from prefopt.models.batches import FILLER
from prefopt.models.distill_policy import Against, DistillPolicy, Teacher
from prefopt.models.generate import Sampled, SamplingOptions
from prefopt.models.modes import evaluating
from prefopt.models.roles import POLICY
from prefopt.models.soft_prompt import sample_from
from prefopt.store.files import read_json, write_json
from prefopt.trainers.averages import Averages
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.collapse import CollapseGuard, Look
from prefopt.trainers.distill_config import DistillConfig
from prefopt.trainers.distill_rows import DistillCollator, Row, completion_mask, seeded_uniforms, token_weights
from prefopt.trainers.microrows import without_padding
from prefopt.trainers.opening import open_adapted, pad_token_of
from prefopt.trainers.ranks import shared_out, step_total
from prefopt.trainers.rollouts import seed_of
from prefopt.trainers.rows import tokenised_targets

_OF_TARGETS = ("kl", "logp", "entropy", "teacher_entropy", "agreement")
_GUARD_FILE = "guard.json"
_PROVED_ROWS = 4  # that the student equals its start on, before the first step


class DistillTrainer(CheckpointedTrainer):
    """Trains a LoRA adapter or a soft prompt on what a teacher says; usable without recipes, as TRL's trainers are.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` with an adapter named `policy` (and a
            frozen `reference` where it did not start from the base, and a frozen `teacher` where that is the teacher).
        args: Options; see `DistillConfig`.
        train_dataset: Rows with `prompt_ids`, `teacher_prompt_ids` (the same prompt by default) and `completion_ids`,
            or with `prompt`, `teacher_prompt` and `completion` as text or messages. `soft` (true by default) says
            whether the target is the teacher's distribution, `replay` whether the completion is real data, and
            `weight` multiplies the row's loss. On policy, rows without a completion are answered by the student.
        eval_dataset: Held-out rows of the same form, with completions of the teacher.
        real_dataset: Held-out rows of real text, for the guards and to see how far the student drifts elsewhere.
        teacher: Whom the student learns from; by default the policy that it starts from.
        origin: What the guards compare with; measured before the first step when None.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the student's adapter, where `model` has none yet.
        kwargs: Passed to `transformers.Trainer` (`callbacks`, `optimizers` …).

    Attributes:
        guard: Looks for a collapse; None before training.
        asks_teacher: Whether some target is a distribution, so that the teacher is asked in every pass.

    Raises:
        InputError: When the model has no adapter to train.
        DataError: When no usable row is left.
    """

    model: DistillPolicy
    train_dataset: Sequence[Row]
    eval_dataset: Sequence[Row] | None
    loss_is_scaled_for_ga = True  # the loss is divided by the tokens of the whole step, see compute_loss

    def __init__(  # noqa: PLR0913  (keyword-only)
        self,
        model: str | PreTrainedModel | PeftModel,
        args: DistillConfig,
        *,
        train_dataset: Sequence[Row],
        eval_dataset: Sequence[Row] | None = None,
        real_dataset: Sequence[Row] = (),
        teacher: Teacher = Teacher(),
        origin: Look | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter starts from random weights
        model, tokenizer = open_adapted(model, processing_class, peft_config, POLICY)
        train, held_out, real = (
            tokenised_targets(rows, tokenizer, args.max_length, args.max_new_tokens if args.on_policy else None)
            for rows in (train_dataset, eval_dataset or (), real_dataset)
        )
        super().__init__(
            model=DistillPolicy(model, teacher),
            args=args,
            data_collator=DistillCollator(pad_token_of(tokenizer)),
            train_dataset=train,
            eval_dataset=held_out or None,
            processing_class=tokenizer,
            **kwargs,
        )
        if Version(transformers.__version__) < Version("5.19"):
            # Older versions read these instead of `loss_is_scaled_for_ga`.
            self.model_accepts_loss_kwargs = False
            self.compute_loss_func = self.compute_loss
        self._collate = self.data_collator
        self.real_dataset = [] if self.model.soft_prompt else real  # vectors change nothing but what they stand before
        self.guard: CollapseGuard | None = None
        self._origin = origin
        self._target = args.target()
        self.asks_teacher = any(row.get("soft", True) for row in train)
        self._averages = {"train": Averages(), "eval": Averages()}

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save_weights(self, directory: Path) -> None:
        """Write what is trained, and into checkpoints what the guards said."""
        super().save_weights(directory)
        if self.guard is not None and not self.saves_complete:
            write_json(directory / _GUARD_FILE, {"reason": self.guard.reason})

    def load_weights(self, directory: Path) -> None:
        """Put both back."""
        super().load_weights(directory)
        if self.guard is not None and (directory / _GUARD_FILE).exists():
            self.guard.reason = read_json(directory / _GUARD_FILE)["reason"]

    # -- before the first step -----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one."""
        if not self.train_dataset:
            raise DataError("there are no rows to train on")
        checkpoint = self.checkpoint_of(resume_from_checkpoint)
        if checkpoint is None:
            self._require_student_equals_start()
        if self.guard is None:
            self.guard = CollapseGuard(self.look, self._origin or self._looked_at_origin(), self.args.guards)
            self.add_callback(self.guard)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _require_student_equals_start(self) -> None:
        rows = [row for row in islice(self.train_dataset, _PROVED_ROWS) if "completion_ids" in row]
        if self.model.soft_prompt or not rows:
            return
        gap = self.opening_gap = self.measure(rows, against="start")["kl"]
        if gap > (1e-5 if self.exact else 1e-2):
            raise InputError(
                f"before the first step a token's distribution is {gap:.1e} nats from what the student started from",
                "is a merged or other adapter active?",
            )

    def _looked_at_origin(self) -> Look:
        """The start, which the student still is, and the teacher where that is the more decided one."""
        nll = self.measure(self.real_dataset)["nll"] if self.real_dataset else None
        return Look(min(self._own_entropy(None), self._own_entropy("teacher")), nll)

    # -- looking at the student ----------------------------------------------------------------------------------------

    def look(self) -> Look:
        """How the student is now; logged under the names of `prefopt.tracking.metrics`."""
        logs = {"distill/own_entropy": self._own_entropy(None)}
        nll = None
        if self.real_dataset:
            found = self.measure(self.real_dataset, against="start")
            nll = found["nll"]
            logs |= {"distill/real_nll": nll, "distill/drift": found["kl"]}
        self.log(logs)
        return Look(logs["distill/own_entropy"], nll)

    def _own_entropy(self, whose: Against | None) -> float:
        """Of the next token, averaged over answers to the guards' prompts; of the student when None."""
        rows = list(islice(self.eval_dataset or self.train_dataset, self.args.guards.prompts))
        key = "teacher_prompt_ids" if whose == "teacher" else "prompt_ids"
        options = SamplingOptions(self.args.max_new_tokens, say=True, batch_size=self.args.per_device_eval_batch_size)
        numbers = seeded_uniforms([seed_of(self.args.seed, "look", place) for place in range(len(rows))], options)

        def answered(indices: Sequence[int]) -> list[tuple[float, int]]:
            samples = self.answers([rows[index][key] for index in indices], options, numbers[list(indices)], whose)
            return [(sum(each.entropies), len(each.ids)) for each in samples]

        found = shared_out(len(rows), answered)
        return sum(total for total, _ in found) / max(1, sum(tokens for _, tokens in found))

    def answers(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, uniforms: Tensor, whose: Against | None = None
    ) -> list[Sampled]:
        """Answers to prompts on this rank.

        Args:
            prompts: Token ids.
            options: How to sample.
            uniforms: [N, max_new_tokens], the random number of each token.
            whose: Of the teacher or of the start; of the student when None.
        """
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        policy: DistillPolicy = self.accelerator.unwrap_model(self.model)
        if not prompts:
            return []
        with self.accelerator.autocast():
            return sample_from(policy, tokenizer, prompts, options, uniforms, whose)

    def measure(self, rows: Sequence[Row], against: Against = "teacher") -> dict[str, float]:
        """Averages over the completion tokens of rows, in nats, over all ranks: `nll`, `kl`, `entropy`, `agreement`.

        Args:
            rows: Tokenised.
            against: Whom `kl` and `agreement` compare with.
        """
        size = self.args.per_device_eval_batch_size
        pieces = [list(rows[start : start + size]) for start in range(0, len(rows), size)]

        def sums(numbers: Sequence[int]) -> list[list[float]]:
            return [self._sums(pieces[number], against) for number in numbers]

        totals = [sum(column) for column in zip(*shared_out(len(pieces), sums), strict=True)]
        return {
            name: total / max(1.0, totals[-1])
            for name, total in zip(("nll", "kl", "entropy", "agreement"), totals[:-1], strict=True)
        }

    def _sums(self, rows: Sequence[Row], against: Against) -> list[float]:
        batch = self._prepare_inputs(self._collate(rows))
        policy: DistillPolicy = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), evaluating(policy), self.accelerator.autocast():
            prompted = batch["teacher" if against == "teacher" else "student"]  # the start reads what the student does
            found = policy(batch["student"], prompted, batch["soft"], target=Target(), against=against)
        parts = (-found.logps, found.divergence, found.entropy, found.agreement)
        return [*(float(part.double().sum()) for part in parts), float(len(found.logps))]

    # -- the step ------------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of an optimiser step; on policy the student answers them first, all with the same weights."""
        batches = list(islice(epoch_iterator, num_batches))
        batches = [self._answered(batch["rows"]) if "rows" in batch else batch for batch in batches]
        for batch in batches:
            self._count_tokens(batch)
        return batches, self._get_num_items_in_batch(batches, device)

    def _answered(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A batch in which every row without a completion has the student's; its random numbers are the row's own."""
        options = SamplingOptions(
            self.args.max_new_tokens,
            temperature=self.args.temperature,
            batch_size=self.args.per_device_eval_batch_size,
        )
        asked = [row for row in rows if "completion_ids" not in row]
        seeds = [seed_of(self.args.seed, "answer", self.state.global_step, row["prompt_ids"]) for row in asked]
        samples = self.answers([row["prompt_ids"] for row in asked], options, seeded_uniforms(seeds, options))
        said = iter(samples)
        full = [row if "completion_ids" in row else {**row, "completion_ids": list(next(said).ids)} for row in rows]
        batch: dict[str, Any] = self._prepare_inputs(self._collate(full))
        return batch

    def _count_tokens(self, batch: Mapping[str, Any]) -> None:
        if FILLER not in batch:
            tokens = batch["student"]["attention_mask"].sum().to(self.args.device)
            self.state.num_input_tokens_seen += int(tokens)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Weighted tokens of the optimiser step."""
        return step_total(self.accelerator, [token_weights(batch) for batch in batch_samples])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Weighted mean over completion tokens.

        Args:
            model: The wrapped module.
            inputs: A batch of rows.
            return_outputs: Also return an empty mapping, as `Trainer` expects.
            num_items_in_batch: Weighted tokens of the step; the batch's own when None.
        """
        # The same on all ranks and however rows are cut: metrics of some passes alone would depend on that.
        asked = self.asks_teacher or not model.training
        tokens: DistillTokens = model(
            inputs["student"], inputs["teacher"] if asked else None, inputs["soft"], target=self._target
        )
        each = token_weights(inputs).to(tokens.losses)
        total = each.sum() if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        # A step whose rows all weigh nothing changes nothing.
        loss = (each * tokens.losses).sum() / total.clamp(min=torch.finfo(each.dtype).tiny)
        self._record(tokens, inputs, each)
        return (loss, {}) if return_outputs else loss

    def _record(self, tokens: DistillTokens, inputs: Mapping[str, Any], each: Tensor) -> None:
        """Take a pass into the averages over tokens. Every rank has the same names, also one that saw no row."""
        averages = self._averages["train" if self.model.training else "eval"]
        replay = inputs["replay"].unsqueeze(1).expand_as(completion_mask(inputs))[completion_mask(inputs)]
        counted = FILLER not in inputs
        parts = (tokens.divergence, tokens.logps, tokens.entropy, tokens.teacher_entropy, tokens.agreement)
        for name, values in zip(_OF_TARGETS, parts, strict=True):
            _add(averages, f"distill/{name}", values, ~replay, counted)
        _add(averages, "distill/replay_loss", tokens.losses.detach(), replay, counted)
        weighted = float(each.sum()) if counted else 0.0
        mean = float((each * tokens.losses.detach()).sum()) / weighted if weighted else 0.0
        averages.add("loss", mean, weighted)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Loss of an evaluation batch; the metrics are summed up on the way."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages over tokens, not over batches, since the last log."""
        for mode, marker, prefix in (("eval", "eval_loss", "eval_"), ("train", "loss", "")):
            if marker in logs:
                found = self._averages[mode].take(self.sum_over_ranks)
                mean = found.pop("loss", logs[marker])
                logs |= {prefix + name: value for name, value in found.items()}
                if mode == "eval":
                    logs[marker] = mean
        super().log(logs, start_time)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def rows_in(self, inputs: dict[str, Any]) -> int:
        """Rows of a batch."""
        return len(inputs["soft"])

    def take_rows(self, inputs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some rows of a batch, each side without the padding that they do not need."""
        taken = super().take_rows(inputs, start, end)
        sides = {
            name: super(DistillTrainer, self).take_rows(inputs[name], start, end) for name in ("student", "teacher")
        }
        return taken | {name: without_padding(side) for name, side in sides.items()}

    def counted(self) -> Mapping[str, Tensor]:
        """What the averages are made of."""
        return self._averages["train"].snapshot()

    def recount(self, counted: Any) -> None:
        """Forget what a pass that failed had counted."""
        self._averages["train"].go_back(counted)

    def row_lengths(self) -> Sequence[int]:
        """Tokens of each of the student's rows."""
        longest = self.args.max_new_tokens
        return [len(row["prompt_ids"]) + len(row.get("completion_ids", range(longest))) for row in self.train_dataset]

    def weightless_row(self, row: Row) -> dict[str, Any]:
        """A row that adds nothing to loss or metrics; see `prefopt.trainers.ranks.FilledCollator`."""
        prompt = list(row["prompt_ids"][:1])
        short = {"prompt_ids": prompt, "teacher_prompt_ids": prompt, "completion_ids": prompt}
        return {**short, "soft": False, "weight": 0.0, FILLER: 1.0}

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        return SequentialSampler(eval_dataset)


def _add(averages: Averages, name: str, values: Tensor | None, which: Tensor, counted: bool) -> None:
    """Count the mean of some of the values [N]."""
    number = 0.0 if values is None else float(which.sum()) * counted
    mean = 0.0 if values is None or not number else float(values[which].double().mean())
    averages.add(name, mean, number)
