"""Kahneman-Tversky optimisation (arXiv 2402.01306) around TRL's loss: rows, passes, reference and metrics.

The loss compares each completion with z, how far the policy is from its reference, which is estimated from the
completions of other rows of the same pass. Here z and the reference's log-probabilities are computed for a whole pass
before TRL's loss sees any of it, so a pass may be cut, and the reference is never active between a forward and its
backward.

Shape suffix: B rows of a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import transformers
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import DataError, InputError
from prefopt.models.batches import FILLER, pad_rows
from prefopt.models.roles import POLICY
from prefopt.trainers.adopted import AdoptedTrainer, adopting
from prefopt.trainers.averages import Averages
from prefopt.trainers.opening import open_adapted, pad_token_of
from prefopt.trainers.rows import tokenised_unpaired

BALANCED = (1.0, 4 / 3)
"""Between which the weights of all desirable rows and of all undesirable rows should be to each other (equation 8)."""


class UnpairedCollator:
    """Rows to a batch, and each prompt with the completion of another row.

    Args:
        pad_token_id: Fills rows.
        mismatched: Whether the loss asks for the latter.
    """

    def __init__(self, pad_token_id: int, *, mismatched: bool) -> None:
        self._pad = pad_token_id
        self._mismatched = mismatched

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `completion_mask` [B, T] and `label` [B]; the former also with `KL_`."""
        batch = self._padded(rows, [row["completion_ids"] for row in rows], "")
        if self._mismatched:
            shift = _to_other_prompts([row["prompt_ids"] for row in rows])
            batch |= self._padded(rows, [rows[index - shift]["completion_ids"] for index in range(len(rows))], "KL_")
        batch["label"] = torch.tensor([bool(row["label"]) for row in rows])
        if any(FILLER in row for row in rows):
            batch[FILLER] = torch.ones(len(rows))
        return batch

    def _padded(
        self, rows: Sequence[Mapping[str, Any]], completions: Sequence[Sequence[int]], prefix: str
    ) -> dict[str, Tensor]:
        prompts = [list(row["prompt_ids"]) for row in rows]
        both = list(zip(prompts, completions, strict=True))
        return {
            f"{prefix}input_ids": pad_rows([[*prompt, *answer] for prompt, answer in both], self._pad),
            f"{prefix}attention_mask": pad_rows([[1] * (len(prompt) + len(answer)) for prompt, answer in both], 0),
            f"{prefix}completion_mask": pad_rows([[0] * len(prompt) + [1] * len(answer) for prompt, answer in both], 0),
        }


class UnpairedTrainer(AdoptedTrainer):
    """Trains a LoRA policy on completions that people marked as desirable or not; usable without recipes.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` with an adapter named `policy`. The
            reference is the policy as it is given.
        args: Options; see TRL's `KTOConfig`. `train_sampling_strategy` is free, as mismatched completions are chosen
            when a batch is made.
        train_dataset: Rows with `prompt`, `completion` and `label`, or pairs, in any format of docs/concepts.md; or
            tokenised, with `prompt_ids`, `completion_ids` and `label`.
        eval_dataset: Held-out rows.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the policy's adapter, where `model` has none yet.
        kwargs: Passed to TRL's trainer (`callbacks`, `optimizers`).

    Raises:
        InputError: When the model has no adapter to train, or one on its language-model head, or a pass has one row.
        DataError: When a row is wrong, or none is usable.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by the rows of the whole step, see compute_loss

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: Any,
        *,
        train_dataset: Sequence[Mapping[str, Any]],
        eval_dataset: Sequence[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter starts from random weights
        mismatched = args.loss_type != "apo_zero_unpaired"
        if mismatched and args.per_device_train_batch_size < 2:
            raise InputError(
                "the KL is estimated from the other rows of a pass, and per_device_train_batch_size 1 has none",
                "use 2 or more, or loss_type 'apo_zero_unpaired'",
            )
        model, tokenizer = open_adapted(model, processing_class, peft_config, POLICY)
        train, held_out = (
            unpaired_rows(tokenised_unpaired(rows, tokenizer, args.max_length)) if rows else None
            for rows in (train_dataset, eval_dataset)
        )
        if train is None:
            raise DataError("there are no rows to train on")
        order, args.train_sampling_strategy = args.train_sampling_strategy, "sequential"  # all that TRL allows
        with adopting(model):
            super().__init__(
                model=model,
                args=args,
                data_collator=UnpairedCollator(pad_token_of(tokenizer), mismatched=mismatched),
                train_dataset=train,
                eval_dataset=held_out,
                processing_class=tokenizer,
                **kwargs,
            )
        args.train_sampling_strategy = order
        self.precompute_ref_logps = True  # by `_prepare_inputs`
        self._averages = {"train": Averages(), "eval": Averages()}

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        """Rows as they are: they are tokenised and within the limit, and TRL would cut, drop and reorder."""
        return dataset

    # -- the step ------------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch with what the reference says of its completions, and z; one that has these is prepared."""
        batch: dict[str, Any] = super()._prepare_inputs(inputs)
        return batch if "ref_logps" in batch else self._with_reference(batch)

    @torch.no_grad()
    def _with_reference(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {name: value for name, value in batch.items() if not name.startswith("KL_")}
        with self.reference():
            reference = self._token_logps(batch)
            mismatched = self._token_logps(batch, "KL_").sum(1) if self.calculate_KL else None
        if self.opening_gap is None and self.state.global_step == 0 and self.model.training:
            self.require_policy_equals_reference(self._token_logps(batch) - reference)
        kept["ref_logps"] = reference.sum(1)
        if mismatched is not None:
            apart = self._token_logps(batch, "KL_").sum(1) - mismatched
            counted = torch.stack([apart.sum(), torch.tensor(float(len(apart)), device=apart.device)])
            total, rows = self.accelerator.reduce(counted * (FILLER not in batch), reduction="sum")
            # TRL's estimate is the mean of its own log-probabilities, which are 0 here, minus these.
            kept["ref_KL_logps"] = -(total / rows.clamp(min=1)).expand(len(apart))
        return kept

    def _token_logps(self, batch: Mapping[str, Tensor], prefix: str = "") -> Tensor:
        """Log-probabilities of completion tokens, [B, T - 1], 0 elsewhere, nats."""
        ids = batch[f"{prefix}input_ids"]
        with self.accelerator.autocast():
            said = self.model(
                input_ids=ids,
                attention_mask=batch[f"{prefix}attention_mask"],
                labels=ids.masked_fill(batch[f"{prefix}completion_mask"] == 0, -100),
                fused_lm_head=True,
            )
        return cast(Tensor, said.log_probs.float())

    def _compute_kl_logps(self, model: object, batch: Mapping[str, Tensor]) -> Tensor | None:
        return torch.zeros_like(batch["ref_KL_logps"]) if self.calculate_KL else None

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Rows of the optimiser step over all ranks: the divisor that makes 1x8 equal 8x1, but for z."""
        rows = sum(len(batch["label"]) for batch in batch_samples if FILLER not in batch)
        return cast(Tensor, self.accelerator.gather(torch.tensor(rows, device=device)).sum())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """TRL's mean over some rows, times their share of the step's.

        Args:
            model: The wrapped module.
            inputs: What `_prepare_inputs` gave, or some rows of it.
            return_outputs: As TRL.
            num_items_in_batch: Rows of the step; the mean over the rows themselves when None.
        """
        batch = {name: value for name, value in inputs.items() if name != FILLER}
        counted = FILLER not in inputs
        said: dict[str, Any] = {}

        def policy(**asked: Any) -> Any:
            said["outputs"] = model(**asked)
            return said["outputs"]

        found = super().compute_loss(policy, batch, return_outputs)
        self.measured()
        self._count(batch, said["outputs"], float(counted))
        if num_items_in_batch is None:
            return found
        return found * (counted * len(batch["label"]) * self.args.world_size / num_items_in_batch)

    def _count(self, batch: Mapping[str, Tensor], outputs: Any, counted: float) -> None:
        """Take a pass into the averages: over rows, or tokens, whichever pass and rank they are in."""
        averages = self._averages[self.mode]
        logps = outputs.log_probs.detach().float().sum(1)
        reward = self.beta * (logps - batch["ref_logps"])
        for name, which in (("desirable", batch["label"]), ("undesirable", ~batch["label"])):
            rows = which.sum().clamp(min=1)
            for part, values in (("reward", reward), ("logp", logps)):
                averages.add(f"kto/{name}_{part}", (values * which).sum() / rows, counted * float(which.sum()))
        tokens = batch["completion_mask"][:, 1:]
        entropy = (outputs.entropy.detach() * tokens).sum() / tokens.sum().clamp(min=1)
        averages.add("kto/entropy", entropy, counted * float(tokens.sum()))
        if self.calculate_KL:
            averages.add("kto/kl", batch["ref_KL_logps"].mean().clamp(max=0).abs(), counted * len(reward))

    def averages(self, mode: str) -> dict[str, float]:
        """Those of the passes, and the margin between good and bad rows."""
        found = super().averages(mode)
        if {"kto/desirable_reward", "kto/undesirable_reward"} <= found.keys():
            found["kto/margin"] = found["kto/desirable_reward"] - found["kto/undesirable_reward"]
        return found

    def rows_in(self, inputs: dict[str, Any]) -> int:
        """Rows of a batch."""
        return len(inputs["label"])

    # -- rows ----------------------------------------------------------------------------------------------------------

    def row_lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        parts = (self.train_dataset[name] for name in ("prompt_ids", "completion_ids"))
        return [len(prompt) + len(answer) for prompt, answer in zip(*parts, strict=True)]

    def weightless_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row that adds nothing to loss or metrics; see `prefopt.trainers.ranks.FilledCollator`."""
        short = {name: list(row[name][:1]) for name in ("prompt_ids", "completion_ids")}
        return {**short, "label": True, FILLER: 1.0}


def _to_other_prompts(prompts: Sequence[Sequence[int]]) -> int:
    """By how many places completions are moved, so that few stay with their prompt: both of a pair have the same."""

    def kept(shift: int) -> int:
        return sum(prompts[index] == prompts[index - shift] for index in range(len(prompts)))

    return min(range(1, len(prompts)), key=kept, default=0)


def unpaired_rows(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Tokenised rows as a data set of `prompt_ids`, `completion_ids` and `label`."""
    names = ("prompt_ids", "completion_ids", "label")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in names})


def imbalance(desirable: int, undesirable: int, desirable_weight: float, undesirable_weight: float) -> str | None:
    """What to say where good and bad rows do not weigh about the same, with a weight that would do; None where they do.

    Args:
        desirable: How many good rows there are.
        undesirable: How many bad ones.
        desirable_weight: Of each good one.
        undesirable_weight: Of each bad one.
    """
    low, high = BALANCED
    if not desirable or not undesirable:
        missing = "desirable" if not desirable else "undesirable"
        return f"there is no {missing} row, so the policy learns from one side alone"
    ratio = desirable_weight * desirable / (undesirable_weight * undesirable)
    if low * (1 - 1e-9) <= ratio <= high * (1 + 1e-9):
        return None
    wanted = (low + high) / 2
    return (
        f"{desirable} desirable rows weigh {ratio:.2g} times what {undesirable} undesirable ones do; KTO works best "
        f"between 1 and 4/3 (arXiv 2402.01306, equation 8), as with `desirable_weight: "
        f"{desirable_weight * wanted / ratio:.3g}`"
    )
