"""Direct preference optimisation (arXiv 2305.18290), as a thin trainer over `transformers.Trainer`.

The algorithm, in the order of this file:

1. Before the first step the reference's log-probabilities of every row are computed once, in batches of similar
   length. They never change, so later epochs cost the policy's passes alone.
2. The policy must equal the reference on the first rows: otherwise the reference is not the stage it started from, and
   every number that follows would be meaningless.
3. Each step computes the policy's log-probabilities of both completions in one forward pass of the wrapped module,
   and the loss that `loss_type` names (`prefopt.losses.dpo`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from prefopt.errors import DataError, InputError
from prefopt.losses.dpo import DPOOptions, PairStatistics, dpo_loss
from prefopt.losses.logprobs import completion_logps
from prefopt.models.batches import PairCollator, batches_by_length
from prefopt.models.modes import evaluating
from prefopt.models.roles import POLICY, reference_active
from prefopt.trainers.opening import open_adapted, pad_token_of
from prefopt.trainers.pairs import PairTrainer, Row, agreement
from prefopt.trainers.rows import tokenised_pairs


@dataclass
class DPOConfig(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` and DPO's own; batch sizes count pairs."""

    beta: float = field(default=0.1, metadata={"help": "strength of the pull to the reference"})
    loss_type: str = field(default="sigmoid", metadata={"help": "a name of prefopt.losses.dpo.DPO_LOSSES"})
    label_smoothing: float = field(default=0.0, metadata={"help": "probability that a label is wrong"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)


class DPOTrainer(PairTrainer):
    """Trains a LoRA policy on preference pairs; usable without recipes, as TRL's trainers are.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` with an adapter named `policy` (and, when
            the policy did not start from the base, a frozen one named `reference`).
        args: Options; see `DPOConfig`.
        train_dataset: Rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, or with `prompt`, `chosen`, `rejected` as
            text or messages. An optional `weight` multiplies the row's loss.
        eval_dataset: Held-out rows of the same form.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the policy's adapter, where `model` has none yet.
        kwargs: Passed to `transformers.Trainer` (`callbacks`, `optimizers` …).

    Raises:
        InputError: When the model has no adapter to train.
        DataError: When no usable row is left.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: DPOConfig,
        *,
        train_dataset: Sequence[Row],
        eval_dataset: Sequence[Row] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter starts from random weights
        model, tokenizer = open_adapted(model, processing_class, peft_config, POLICY)
        super().__init__(
            model=model,
            args=args,
            data_collator=PairCollator(pad_token_of(tokenizer)),
            train_dataset=tokenised_pairs(train_dataset, tokenizer, args.max_length),
            eval_dataset=tokenised_pairs(eval_dataset, tokenizer, args.max_length) if eval_dataset else None,
            processing_class=tokenizer,
            **kwargs,
        )
        self._options = DPOOptions(args.beta, args.label_smoothing)

    # -- the reference -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one."""
        checkpoint = self.checkpoint_of(resume_from_checkpoint)
        self.train_dataset = self._with_reference(self.train_dataset)
        if checkpoint is None:
            self._require_policy_equals_reference(self.train_dataset)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and metrics of held-out pairs."""
        rows = self._with_reference(eval_dataset if eval_dataset is not None else self.eval_dataset or [])
        if eval_dataset is None:
            self.eval_dataset = rows
        metrics: dict[str, float] = super().evaluate(rows, *args, **kwargs)
        return metrics

    def _with_reference(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows with the reference's log-probabilities of both completions, computed once."""
        if not rows:
            raise DataError("there are no pairs to train or evaluate on")
        if "reference_chosen_logps" in rows[0]:
            return rows
        complete: list[dict[str, Any]] = [dict(row) for row in rows]
        # A pair is two rows of the batch, each as long as the longer one.
        lengths = [2 * (len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))) for row in rows]
        vocabulary = self.model.config.get_text_config().vocab_size
        for indices in batches_by_length(lengths, self.args.per_device_eval_batch_size, vocabulary):
            chosen, rejected = self._reference_logps([rows[i] for i in indices])
            for index, c, r in zip(indices, chosen.tolist(), rejected.tolist(), strict=True):
                complete[index].update(reference_chosen_logps=c, reference_rejected_logps=r)
            # This pass can take minutes: callbacks may end it, as they may end an evaluation.
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return complete

    def _reference_logps(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        with reference_active(self.model):
            parts = self.in_micro_rows(len(rows), lambda start, end: self._logps_without_gradient(rows[start:end]))
        chosen, rejected = zip(*parts, strict=True)
        return torch.cat(chosen), torch.cat(rejected)

    def _logps_without_gradient(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        batch = self._prepare_inputs(self.data_collator(rows))
        # Autocast as in training: otherwise policy and reference would differ by rounding before the first step.
        with evaluating(self.model), torch.no_grad(), self.accelerator.autocast():
            return self._completion_logps(self.model, batch)

    def _require_policy_equals_reference(self, rows: Sequence[Row]) -> None:
        first = rows[: self.args.per_device_eval_batch_size]
        policy = torch.cat(self._logps_without_gradient(first)).cpu()
        names = ("reference_chosen_logps", "reference_rejected_logps")
        reference = torch.tensor([row[name] for name in names for row in first])
        exact = next(self.model.parameters()).dtype is torch.float32 and not self.args.bf16 and not self.args.fp16
        gap = self.opening_gap = float(((policy - reference).abs() / reference.abs().clamp(min=1.0)).max())
        if gap > (1e-4 if exact else 2e-2):
            raise InputError(
                f"before the first step the policy's log-probabilities differ from the reference's by {gap:.1e}",
                "the reference must be the stage that the policy starts from; is a merged or other adapter active?",
            )

    # -- the step ------------------------------------------------------------------------------------------------------

    def pair_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that `loss_type` names, of every pair; see `prefopt.losses.dpo`."""
        policy_chosen, policy_rejected = self._completion_logps(model, inputs)
        lengths = inputs["completion_mask"].sum(-1).to(policy_chosen.dtype)
        chosen_length, rejected_length = lengths.chunk(2)
        pair = PairStatistics(
            policy_chosen - inputs["reference_chosen_logps"],
            policy_rejected - inputs["reference_rejected_logps"],
            chosen_length,
            rejected_length,
        )
        output = dpo_loss(pair, self.args.loss_type, self._options, inputs.get("probability"))
        margin = output.chosen_rewards - output.rejected_rewards
        return output.losses, {
            "dpo/accuracy": agreement(margin, inputs),
            "dpo/margin": margin,
            "dpo/chosen_reward": output.chosen_rewards,
            "dpo/rejected_reward": output.rejected_rewards,
            "dpo/chosen_logp": policy_chosen.detach(),
            "dpo/rejected_logp": policy_rejected.detach(),
            "dpo/chosen_shift": pair.chosen_logratio.detach(),
        }

    def _completion_logps(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        chosen, rejected = completion_logps(logits, batch["input_ids"], batch["completion_mask"]).chunk(2)
        return chosen, rejected
