"""A reward model from preference pairs (arXiv 2009.01325), as a thin trainer over `transformers.Trainer`.

Both answers of a pair go through one forward pass, the prompt once; the score of each is read at its last token. The
head may have several outputs: members of an ensemble that share the adapter, and for each the score and a second axis.
After every save adapter and head are read back and must give the scores that the model gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import DataError, InputError, IntegrityError
from prefopt.losses.reward import labelled, rating_loss, reward_loss
from prefopt.models.heads import (
    RewardModel,
    ScoreHead,
    hang_reward,
    load_reward_weights,
    new_head,
    read_reward,
    save_reward,
)
from prefopt.models.modes import evaluating
from prefopt.models.roles import REWARD, activate_trained, set_active, stack_of
from prefopt.stats.calibration import both_orders, fit_temperature
from prefopt.trainers.opening import open_adapted
from prefopt.trainers.pairs import PairTrainer, Row, agreement
from prefopt.trainers.reward_config import RewardConfig
from prefopt.trainers.reward_rows import RewardCollator, RewardRows, reward_row
from prefopt.trainers.rows import tokenised_pairs

_PROBE = 4  # pairs that are scored again after every save
_SAVED = "saved"


class RewardTrainer(PairTrainer):
    """Trains a LoRA adapter and a score head on preference pairs; usable without recipes, as TRL's trainers are.

    Args:
        model: A causal language model, its name or folder, a `PeftModel` with an adapter named `reward`, or a
            `RewardModel`.
        args: Options; see `RewardConfig`.
        train_dataset: Rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, or with `prompt`, `chosen`, `rejected` as
            text or messages. An optional `weight` multiplies the row's loss; `probability`, `margin`, `source`,
            `annotator`, `score_chosen`, `score_rejected` and `axes` are used as the options say.
        eval_dataset: Held-out rows of the same form.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the adapter, where `model` has none yet.
        kwargs: Passed to `transformers.Trainer` (`callbacks`, `optimizers` …).

    Raises:
        InputError: When the model has no adapter to train, or its head not as many outputs as the options ask for.
        DataError: When no usable row is left, or one lacks what the options need.

    Attributes:
        fitted: What was fitted on the training rows; with `head: regression` scores are ratings minus `fitted.origin`,
            divided by `fitted.unit`.
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
        given = model.peft if isinstance(model, RewardModel) else model
        peft, tokenizer = open_adapted(given, processing_class, peft_config, REWARD)
        rows = tokenised_pairs(train_dataset, tokenizer, args.max_length, reward_row)
        if not rows:
            raise DataError("there are no pairs to train on")
        self.fitted = RewardRows.fit(rows, args)
        held_out = tokenised_pairs(eval_dataset, tokenizer, args.max_length, reward_row) if eval_dataset else None
        super().__init__(
            model=RewardModel(peft, _head(model, peft, args)),
            args=args,
            data_collator=RewardCollator(),
            train_dataset=self.fitted.prepared(rows, args, training=True),
            eval_dataset=self.fitted.prepared(held_out, args, training=False) if held_out else None,
            processing_class=tokenizer,
            **kwargs,
        )

    def pair_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of every pair, over members the mean and over axes the sum; see `prefopt.losses.reward`."""
        scores = self._by_member(model(inputs["input_ids"], lengths=inputs["lengths"]))
        chosen, rejected = scores.chunk(2)  # [B, members, axes]; losses are [B, members]
        losses, metrics = self._main_losses(chosen[..., 0], rejected[..., 0], inputs)
        if self.args.second_axis:
            label, known = labelled(inputs["second_probability"])
            second = reward_loss(chosen[..., 1], rejected[..., 1], probability=label.unsqueeze(1))
            losses = losses + known.unsqueeze(1) * second.losses
            metrics["reward/second_accuracy"] = agreement(second.margins.mean(1), {"probability": label})[known > 0]
        if "member_weights" in inputs:
            losses = losses * inputs["member_weights"]
        return losses.mean(1), metrics

    def _main_losses(
        self, chosen: Tensor, rejected: Tensor, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.args.head == "regression":
            ratings = (inputs["rating_chosen"].unsqueeze(1), inputs["rating_rejected"].unsqueeze(1))
            output = rating_loss(chosen, rejected, *ratings)
        else:
            probability, margin = inputs.get("probability"), self._asked_margin(inputs)
            output = reward_loss(
                chosen,
                rejected,
                probability=None if probability is None else probability.unsqueeze(1),
                margin=None if margin is None else margin.unsqueeze(1),
                center_rewards_coefficient=self.args.center_rewards_coefficient,
                focal_gamma=self.args.focal_gamma,
            )
        margins = output.margins.mean(1)
        return output.losses, {
            "reward/accuracy": agreement(margins, inputs),
            "reward/margin": margins,
            "reward/chosen_score": chosen.detach().mean(1),
            "reward/rejected_score": rejected.detach().mean(1),
        }

    def _asked_margin(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """What the difference of scores is compared with: the rows' margin, minus what their lengths explain."""
        margin = None
        if self.args.margin_scale and "margin" in inputs:
            margin = self.args.margin_scale * inputs["margin"]
        if "length_logit" in inputs:
            # σ(d + the ruler's log-odds): the scores need not say again what length says (arXiv 1909.03683).
            margin = -inputs["length_logit"] if margin is None else margin - inputs["length_logit"]
        return margin

    def said_of(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores of the completions, [2B] or [2B, outputs]."""
        scores: Tensor = self.model(batch["input_ids"], lengths=batch["lengths"])
        return scores

    def _by_member(self, scores: Tensor) -> Tensor:
        """Outputs of the head as [rows, M, A]."""
        return scores.reshape(len(scores), self.args.ensemble_heads, -1)

    @torch.no_grad()
    def outputs(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and of the rejected answers of tokenised pairs, by member and axis: [N, M, A] each."""
        shape = (0, self.args.ensemble_heads, self.model.score.out_features // self.args.ensemble_heads)
        chosen, rejected = [torch.empty(shape)], [torch.empty(shape)]
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(rows), size):
            batch = self._prepare_inputs(self.data_collator(rows[start : start + size]))
            with self.fast_passes(rows), evaluating(self.model), self.accelerator.autocast():
                found = self._by_member(self.said_of(batch))
            first, second = found.float().cpu().chunk(2)
            chosen.append(first)
            rejected.append(second)
        return torch.cat(chosen), torch.cat(rejected)

    def scores(self, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
        """Scores of the chosen and of the rejected answers of tokenised pairs: of several members the mean."""
        chosen, rejected = self.outputs(rows)
        return chosen[..., 0].mean(1).tolist(), rejected[..., 0].mean(1).tolist()

    def calibrate(self, rows: Sequence[Row] | None = None) -> float:
        """Divide the scores by the temperature that makes the labels of held-out pairs most likely (arXiv 1706.04599).

        The ranking stays. The head itself is divided, so that whoever opens what is saved next has calibrated scores.

        Args:
            rows: Tokenised pairs that were not trained on; the evaluation rows when None.

        Returns:
            The temperature.

        Raises:
            ValueError: For no rows.
        """
        held_out = self.eval_dataset if rows is None else rows
        chosen, rejected = self.scores(held_out or [])
        margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
        labels = [row.get("probability", 1.0) for row in held_out or []]
        temperature = fit_temperature(*both_orders(margins, labels))
        with torch.no_grad():
            self.model.score.weight.div_(temperature)
        return temperature

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
            expected = self.model(batch["input_ids"], lengths=batch["lengths"])
            peft, head = hang_reward(self.model.peft, directory, _SAVED)
            beneath = [] if self.saves_complete else stack_of(peft, REWARD)[:-1]
            set_active(peft, [*beneath, _SAVED])
            try:
                saved = RewardModel(peft, head)
                saved.shares_prompts = self.model.shares_prompts
                found = saved(batch["input_ids"], lengths=batch["lengths"])
            finally:
                activate_trained(peft, REWARD)
                peft.delete_adapter(_SAVED)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            gap = float((found - expected).abs().max())
            raise IntegrityError(f"{directory}: the saved reward model scores differently, by up to {gap:.1e}")


def _head(model: object, peft: PeftModel, args: RewardConfig) -> ScoreHead:
    """The head that the model has, or a new one, with an output for each member and axis."""
    outputs = args.ensemble_heads * (2 if args.second_axis else 1)
    head = model.score if isinstance(model, RewardModel) else new_head(peft, outputs)
    if head.out_features != outputs:
        raise InputError(f"the options ask for {outputs} outputs of the head, and it has {head.out_features}")
    return head
