"""A reward model from preference pairs (arXiv 2009.01325), as a thin trainer over `transformers.Trainer`.

Both answers of a pair go through one forward pass; the score of each is read at its last real token. After every save
adapter and head are read back and must give the scores that the model gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from prefopt.errors import DataError, IntegrityError
from prefopt.losses.reward import reward_loss
from prefopt.models.batches import PairCollator
from prefopt.models.heads import (
    RewardModel,
    hang_reward,
    load_reward_weights,
    new_head,
    read_reward,
    save_reward,
)
from prefopt.models.modes import evaluating
from prefopt.models.roles import REWARD, activate_trained, set_active, stack_of
from prefopt.trainers.opening import open_adapted, pad_token_of
from prefopt.trainers.pairs import PairTrainer, Row, agreement
from prefopt.trainers.rows import tokenised_pairs

_PROBE = 4  # pairs that are scored again after every save
_SAVED = "saved"


@dataclass
class RewardConfig(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` and the reward model's own; batch sizes count pairs."""

    center_rewards_coefficient: float = field(default=0.0, metadata={"help": "pulls the scores to 0"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)


class RewardTrainer(PairTrainer):
    """Trains a LoRA adapter and a score head on preference pairs; usable without recipes, as TRL's trainers are.

    Args:
        model: A causal language model, its name or folder, a `PeftModel` with an adapter named `reward`, or a
            `RewardModel`.
        args: Options; see `RewardConfig`.
        train_dataset: Rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, or with `prompt`, `chosen`, `rejected` as
            text or messages. An optional `weight` multiplies the row's loss.
        eval_dataset: Held-out rows of the same form.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the adapter, where `model` has none yet.
        kwargs: Passed to `transformers.Trainer` (`callbacks`, `optimizers` …).

    Raises:
        InputError: When the model has no adapter to train.
        DataError: When no usable row is left.
    """

    model: RewardModel

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel | RewardModel,
        args: RewardConfig,
        *,
        train_dataset: Sequence[Row],
        eval_dataset: Sequence[Row] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter and head start from random weights
        head = model.score if isinstance(model, RewardModel) else None
        given = model.peft if isinstance(model, RewardModel) else model
        peft, tokenizer = open_adapted(given, processing_class, peft_config, REWARD)
        rows = tokenised_pairs(train_dataset, tokenizer, args.max_length)
        if not rows:
            raise DataError("there are no pairs to train on")
        super().__init__(
            model=RewardModel(peft, head or new_head(peft)),
            args=args,
            data_collator=PairCollator(pad_token_of(tokenizer)),
            train_dataset=rows,
            eval_dataset=tokenised_pairs(eval_dataset, tokenizer, args.max_length) if eval_dataset else None,
            processing_class=tokenizer,
            **kwargs,
        )

    def pair_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Bradley-Terry loss of every pair; see `prefopt.losses.reward`."""
        chosen, rejected = model(inputs["input_ids"], inputs["attention_mask"]).chunk(2)
        output = reward_loss(
            chosen,
            rejected,
            probability=inputs.get("probability"),
            center_rewards_coefficient=self.args.center_rewards_coefficient,
        )
        return output.losses, {
            "reward/accuracy": agreement(output.margins, inputs),
            "reward/margin": output.margins,
            "reward/chosen_score": chosen.detach(),
            "reward/rejected_score": rejected.detach(),
        }

    @torch.no_grad()
    def scores(self, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
        """Scores of the chosen and of the rejected answers of tokenised pairs."""
        chosen: list[float] = []
        rejected: list[float] = []
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(rows), size):
            batch = self._prepare_inputs(self.data_collator(rows[start : start + size]))
            with evaluating(self.model), self.accelerator.autocast():
                first, second = self.model(batch["input_ids"], batch["attention_mask"]).chunk(2)
            chosen += first.tolist()
            rejected += second.tolist()
        return chosen, rejected

    # -- saving --------------------------------------------------------------------------------------------------------

    def save_weights(self, directory: Path) -> None:
        """Write adapter and head as one SEQ_CLS folder, read it back, and compare scores.

        Raises:
            IntegrityError: When what was saved does not score as the model does: a head that is not saved, or saved
                under a name that nobody reads, would be replaced by random numbers without a word.
        """
        complete = self.saves_complete
        save_reward(self.model.peft, REWARD, self.model.score, directory, self.base_name, complete=complete)
        self._require_equal_scores(directory)

    def load_weights(self, directory: Path) -> None:
        """Put back what `save_weights` wrote."""
        _, weights, head = read_reward(directory)
        load_reward_weights(self.model.peft, REWARD, weights, directory)
        with torch.no_grad():
            self.model.score.weight.copy_(head)

    @torch.no_grad()
    def _require_equal_scores(self, directory: Path) -> None:
        batch = self._prepare_inputs(self.data_collator(self.train_dataset[:_PROBE]))
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        # A second adapter begins with random numbers, which must not be missing in training.
        with evaluating(self.model), self.accelerator.autocast(), torch.random.fork_rng(devices=devices):
            expected = self.model(batch["input_ids"], batch["attention_mask"])
            peft, head = hang_reward(self.model.peft, directory, _SAVED)
            beneath = [] if self.saves_complete else stack_of(peft, REWARD)[:-1]
            set_active(peft, [*beneath, _SAVED])
            try:
                found = RewardModel(peft, head)(batch["input_ids"], batch["attention_mask"])
            finally:
                activate_trained(peft, REWARD)
                peft.delete_adapter(_SAVED)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            gap = float((found - expected).abs().max())
            raise IntegrityError(f"{directory}: the saved reward model scores differently, by up to {gap:.1e}")
