"""Direct preference optimisation (arXiv 2305.18290), as a thin trainer over `transformers.Trainer`.

The algorithm, in the order of this file:

1. Before the first step the reference's log-probabilities of every row are computed once, in large batches. They never
   change, so later epochs cost the policy's passes alone. Losses without a reference skip this.
2. The policy must equal the reference on the first rows: otherwise the reference is not the stage it started from, and
   every number that follows would be meaningless.
3. Each step computes the policy's log-probabilities of both completions in one forward pass of the wrapped module, the
   prompt once (`prefopt.models.shared_prefix`), and the loss, or the mixture of losses, that `loss_type` names
   (`prefopt.losses.dpo`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from prefopt.data.token_rows import WithColumns, lengths_of
from prefopt.errors import DataError, InputError
from prefopt.losses.dpo import SORTED, dpo_loss, dr_dpo, needs_reference
from prefopt.losses.logprobs import CompletionSums
from prefopt.losses.pair_statistics import CompletionStatistics, DPOOptions, FDivergence, PairStatistics
from prefopt.models.batches import FLAGS, PairCollator, batches_by_length
from prefopt.models.lm_head import require_plain_head
from prefopt.models.modes import evaluating
from prefopt.models.pair_policy import PairPolicy
from prefopt.models.roles import POLICY, reference_active
from prefopt.store.reference_cache import ReferenceCache
from prefopt.trainers.opening import open_adapted
from prefopt.trainers.pairs import (
    PROVED_PAIRS,
    PairTrainer,
    Row,
    agreement,
    pair_lengths,
    runs_of_tokens,
    tokens_per_pass,
    weights,
)
from prefopt.trainers.ranks import shared_out
from prefopt.trainers.rows import TOKENISED, tokenised_pairs
from prefopt.trainers.sequence_unlikelihood import Continuation, SequenceUnlikelihoodTrainer


@dataclass
class DPOConfig(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` and DPO's own; batch sizes count pairs."""

    beta: float = field(default=0.1, metadata={"help": "strength of the pull to the reference"})
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"], metadata={"help": "a name of prefopt.losses.dpo.DPO_LOSSES, or several"}
    )
    loss_weights: list[float] | None = field(default=None, metadata={"help": "of each loss type; 1 by default"})
    label_smoothing: float = field(default=0.0, metadata={"help": "probability that a label is wrong"})
    ld_alpha: float | None = field(default=None, metadata={"help": "weight of tokens beyond the shorter completion"})
    f_divergence_type: FDivergence = field(default="reverse_kl", metadata={"help": "what regularises the policy"})
    f_alpha_divergence_coef: float = field(default=0.5, metadata={"help": "the alpha of alpha_divergence"})
    use_weighting: bool = field(default=False, metadata={"help": "WPO: weigh pairs by their likelihood"})
    simpo_gamma: float = field(default=0.5, metadata={"help": "target margin of simpo"})
    cpo_alpha: float = field(default=1.0, metadata={"help": "weight of the likelihood in cpo"})
    orpo_lambda: float = field(default=0.1, metadata={"help": "weight of the odds ratio in orpo"})
    discopop_tau: float = field(default=0.05, metadata={"help": "temperature of discopop's mixture"})
    rdpo_alpha: float = field(default=0.01, metadata={"help": "price of a token in rdpo"})
    chipo_clip: float = field(default=10.0, metadata={"help": "half of chipo's largest margin"})
    dpop_lambda: float = field(default=50.0, metadata={"help": "weight of a fall of the chosen answer in dpop"})
    tdpo_alpha: float = field(default=0.5, metadata={"help": "weight of the sequential divergences in tdpo"})
    ropo_alpha: float = field(default=2.0, metadata={"help": "weight of ropo's bounded part"})
    rpo_eta: float = field(default=1.0, metadata={"help": "what a unit of the rows' margin is worth in rpo"})
    odpo_alpha: float = field(default=1.0, metadata={"help": "what the rows' margin is multiplied with in odpo"})
    focal_gamma: float = field(default=0.0, metadata={"help": "takes weight from pairs that sigmoid ranks right"})
    dr_beta: float | None = field(default=None, metadata={"help": "Dr. DPO: smaller counts pairs of high loss less"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        super().__post_init__()

    def options(self) -> DPOOptions:
        """The scalars of the losses."""
        return DPOOptions(**{name: getattr(self, name) for name in DPOOptions._fields})


class DPOTrainer(SequenceUnlikelihoodTrainer, PairTrainer):
    """Trains a LoRA policy on preference pairs; usable without recipes, as TRL's trainers are.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` with an adapter named `policy` (and, when
            the policy did not start from the base, a frozen one named `reference`).
        args: Options; see `DPOConfig`.
        train_dataset: Rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, or with `prompt`, `chosen`, `rejected` as
            text or messages. An optional `weight` multiplies the row's loss, `probability` is a soft label, and
            `margin` says how much better the chosen answer was rated, for `odpo` and `rpo`. `chosen_cost` and
            `rejected_cost` tilt the reference (`prefopt.losses.dpo.tilted`); tokens of the chosen answer are unlearned
            with the weights that `chosen_unlikelihood` gives them.
        eval_dataset: Held-out rows of the same form.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the policy's adapter, where `model` has none yet.
        reference_cache: What this reference said of rows before; it must belong to this very reference.
        kwargs: `sequence_unlikelihood` (see `SequenceUnlikelihood`), and what `transformers.Trainer` takes
            (`callbacks`, `optimizers` …).

    Raises:
        InputError: When the model has no adapter to train, or has one on the language-model head for `tdpo`.
        DataError: When no usable row is left.
    """

    def __init__(  # noqa: PLR0913  (keyword-only)
        self,
        model: str | PreTrainedModel | PeftModel,
        args: DPOConfig,
        *,
        train_dataset: Sequence[Row],
        eval_dataset: Sequence[Row] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        reference_cache: ReferenceCache | None = None,
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter starts from random weights
        model, tokenizer = open_adapted(model, processing_class, peft_config, POLICY)
        super().__init__(
            model=PairPolicy(model),
            args=args,
            data_collator=PairCollator(),
            train_dataset=tokenised_pairs(train_dataset, tokenizer, args.max_length),
            eval_dataset=tokenised_pairs(eval_dataset, tokenizer, args.max_length) if eval_dataset else None,
            processing_class=tokenizer,
            **kwargs,
        )
        self._options = args.options()
        self._reference_cache = reference_cache
        self._reference_names = reference_names(tails=self._options.ld_alpha is not None)
        self._compares = needs_reference(args.loss_type)
        self._sequential = "tdpo" in args.loss_type
        if self._sequential:
            require_plain_head(
                model, "tdpo compares policy and reference through one language-model head, and adapters change it"
            )
        self._mean_lengths: Sequence[Tensor | None] = (None, None)
        for rows in (self.train_dataset, self.eval_dataset or []):
            _require_columns(rows, args.loss_type)

    # -- the reference -------------------------------------------------------------------------------------------------

    def prepare_training(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """What the reference says of every row, and whether the policy equals it."""
        checkpoint = self.checkpoint_of(resume_from_checkpoint)
        self.train_dataset = self._with_reference(self.train_dataset)
        if checkpoint is None and self._compares:
            self._require_policy_equals_reference(self.train_dataset)
        return checkpoint

    def prepare_evaluation(self, eval_dataset: Any) -> Any:
        """What the reference says of the rows."""
        if eval_dataset is not None:
            return self._with_reference(eval_dataset)
        self.eval_dataset = self._with_reference(self.eval_dataset or [])
        return None

    def _with_reference(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows with the reference's log-probabilities of both completions, computed once."""
        if not self._compares or "reference_chosen_logps" in rows[0]:
            return rows
        said: dict[str, list[float]] = {name: [0.0] * len(rows) for name in self._reference_names}
        batches = self._reference_batches(rows)

        def compute(numbers: Sequence[int]) -> list[dict[str, list[float]]]:
            found: list[dict[str, list[float]]] = []
            for turn in range(-(-len(batches) // self.args.world_size)):
                if turn < len(numbers):
                    found.append(self._cached_columns([rows[i] for i in batches[numbers[turn]]]))
                # This pass can take minutes: callbacks may end it, on all ranks in the same turn.
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            return found

        for indices, columns in zip(batches, shared_out(len(batches), compute), strict=True):
            for name, values in columns.items():
                for index, value in zip(indices, values, strict=True):
                    said[name][index] = value
        return WithColumns(rows, said)

    def _reference_batches(self, rows: Sequence[Row]) -> list[list[int]]:
        """Numbers of the rows of each batch: as many tokens as a pass may have, or as padding and logits allow."""
        if self.model.shares_prompts:
            runs = runs_of_tokens(pair_lengths(rows), tokens_per_pass(self.args.device))
            return [list(range(start, end)) for start, end in runs]
        # A pair is two rows of the batch, each as long as the longer one.
        prompts, chosen, rejected = (lengths_of(rows, part) for part in TOKENISED)
        lengths = [2 * (p + max(c, r)) for p, c, r in zip(prompts, chosen, rejected, strict=True)]
        vocabulary = self.model.config.get_text_config().vocab_size
        return batches_by_length(lengths, self.args.per_device_eval_batch_size, vocabulary)

    def _cached_columns(self, rows: Sequence[Row]) -> dict[str, list[float]]:
        """What the reference says of a batch. It is computed whole or not at all: rounding depends on the company."""
        if self._reference_cache is None:
            return self._reference_columns(rows)
        names = self._reference_names
        keys = [row_key(row, names) for row in rows]
        known = self._reference_cache.read(keys)
        if all(key in known for key in keys):
            return {name: [known[key][place] for key in keys] for place, name in enumerate(names)}
        columns = self._reference_columns(rows)
        numbers = zip(*(columns[name] for name in names), strict=True)
        self._reference_cache.write(dict(zip(keys, numbers, strict=True)))
        return columns

    def _reference_columns(self, rows: Sequence[Row]) -> dict[str, list[float]]:
        with reference_active(self.model.peft):
            parts = self.in_micro_rows(
                len(rows), lambda start, end: _reference_columns(self._sums_without_gradient(rows[start:end]))
            )
        return {name: [value for part in parts for value in part[name].tolist()] for name in parts[0]}

    def _sums_without_gradient(self, rows: Sequence[Row]) -> CompletionSums:
        batch = self._prepare_inputs(self.data_collator(rows))
        # Autocast as in training: otherwise policy and reference would differ by rounding before the first step.
        with evaluating(self.model), torch.no_grad(), self.accelerator.autocast():
            return self._completion_sums(self.model, batch)

    def said_of(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of the completions, [2B]."""
        return self._completion_sums(self.model, batch).logps

    def _require_policy_equals_reference(self, rows: Sequence[Row]) -> None:
        first = rows[:PROVED_PAIRS]
        policy = self._sums_without_gradient(first).logps.cpu()
        names = ("reference_chosen_logps", "reference_rejected_logps")
        reference = torch.tensor([row[name] for name in names for row in first])
        gap = self.opening_gap = float(((policy - reference).abs() / reference.abs().clamp(min=1.0)).max())
        if gap > (1e-4 if self.exact else 2e-2):
            raise InputError(
                f"before the first step the policy's log-probabilities differ from the reference's by {gap:.1e}",
                "the reference must be the stage that the policy starts from; is a merged or other adapter active?",
            )

    # -- the step ------------------------------------------------------------------------------------------------------

    def pair_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that `loss_type` names, of every pair; see `prefopt.losses.dpo`."""
        sums = self._completion_sums(model, inputs, sequential_kl=self._sequential)
        pair = self._statistics(sums, inputs)
        costs = _costs_of(inputs)
        output = dpo_loss(
            pair, self.args.loss_type, self._options, inputs.get("probability"), self.args.loss_weights, costs=costs
        )
        losses, margin = output.losses, output.chosen_rewards - output.rejected_rewards
        metrics = {
            "dpo/accuracy": agreement(margin, inputs),
            "dpo/margin": margin,
            "dpo/chosen_reward": output.chosen_rewards,
            "dpo/rejected_reward": output.rejected_rewards,
            "dpo/chosen_logp": pair.chosen.logps.detach(),
            "dpo/rejected_logp": pair.rejected.logps.detach(),
            "dpo/entropy": torch.stack(sums.entropy.chunk(2)).mean(0),
        }
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            if side.reference_logps is not None:
                metrics[f"dpo/{name}_shift"] = (side.logps - side.reference_logps).detach()
        if costs is not None:
            metrics["dpo/cost_margin"] = costs[1] - costs[0]
        if sums.unlikelihood is not None:
            unlearned = sums.unlikelihood.chunk(2)[0] / pair.chosen.length
            losses, metrics["dpo/unlikelihood"] = losses + unlearned, unlearned.detach()
        return losses, metrics

    def prompts_of(self, batch: Mapping[str, Any]) -> list[list[int]]:
        """The prompts of pairs that weigh something."""
        pieces = batch["input_ids"][0].cpu().split(batch["lengths"].flatten().tolist())
        return [
            piece.tolist() if weight else [] for piece, weight in zip(pieces[::3], weights(batch).tolist(), strict=True)
        ]

    def unlikelihood_of(self, model: nn.Module, rows: Sequence[Continuation]) -> Tensor:
        """Of rows as chosen answers of pairs, whose rejected answers are one token that nobody looks at."""
        pairs = [
            {"prompt_ids": row.prompt_ids, "chosen_ids": row.ids, "rejected_ids": row.ids[:1], FLAGS: row.weights}
            for row in rows
        ]
        batch = self._prepare_inputs(PairCollator()(pairs))
        sums: CompletionSums = model(batch["input_ids"], batch["lengths"], flags=batch[FLAGS])
        assert sums.unlikelihood is not None  # flags were given
        return sums.unlikelihood.sum()

    def summed(self, losses: Tensor, each: Tensor) -> Tensor:
        """Weighted sum of the pairs' losses; with `dr_beta` their robust mean, as often as the weights say."""
        if self.args.dr_beta is None:
            return super().summed(losses, each)
        return dr_dpo(losses, each, self.args.dr_beta) * each.sum()

    @property
    def rows_add_up(self) -> bool:
        """Not where pairs are ranked or weighed against the others of their batch."""
        return self.args.dr_beta is None and not SORTED & set(self.args.loss_type) and super().rows_add_up

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Also the mean lengths of the step's completions, by which likelihoods are divided."""
        total = super()._get_num_items_in_batch(batch_samples, device)
        tokens = [(weights(b)[:, None] * b["lengths"][:, 1:]).sum(0) for b in batch_samples]
        everywhere = self.accelerator.gather(torch.stack(tokens).sum(0)[None].to(device)).sum(0)
        self._mean_lengths = tuple(everywhere / total.clamp(min=torch.finfo(total.dtype).tiny))
        return total

    def _statistics(self, sums: CompletionSums, inputs: dict[str, Tensor]) -> PairStatistics:
        lengths = inputs["lengths"][:, 1:].T.flatten().to(sums.logps.dtype)
        sides = [
            CompletionStatistics(
                logps, length, inputs.get(f"reference_{name}_logps"), tail, inputs.get(f"reference_{name}_tail_logps"),
                sequential_kl, alignment,
            )
            for name, logps, length, tail, sequential_kl, alignment in zip(
                ("chosen", "rejected"),
                *(_halves(x) for x in (sums.logps, lengths, sums.tail_logps, sums.sequential_kl, sums.alignment)),
                strict=True,
            )
        ]  # fmt: skip
        means = self._mean_lengths if self.model.training else (None, None)
        return PairStatistics(sides[0], sides[1], inputs.get("margin"), *means)

    def _completion_sums(
        self, model: nn.Module, batch: dict[str, Tensor], *, sequential_kl: bool = False
    ) -> CompletionSums:
        sums: CompletionSums = model(
            batch["input_ids"],
            batch["lengths"],
            tails=self._options.ld_alpha is not None,
            alignment=self._options.use_weighting,
            sequential_kl=sequential_kl,
            flags=batch.get(FLAGS),
        )
        return sums


def _costs_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Costs of both completions, [B] each; None where the rows have none."""
    if "chosen_cost" not in batch and "rejected_cost" not in batch:
        return None
    return batch["chosen_cost"], batch["rejected_cost"]


def _halves(values: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if values is None:
        return None, None
    chosen, rejected = values.chunk(2)
    return chosen, rejected


def _reference_columns(sums: CompletionSums) -> dict[str, Tensor]:
    parts = [part for values in (sums.logps, sums.tail_logps) if values is not None for part in values.chunk(2)]
    return dict(zip(reference_names(tails=sums.tail_logps is not None), parts, strict=True))


def reference_names(*, tails: bool) -> tuple[str, ...]:
    """Columns that hold what the reference says of a pair."""
    kinds = ("logps", "tail_logps") if tails else ("logps",)
    return tuple(f"reference_{side}_{kind}" for kind in kinds for side in ("chosen", "rejected"))


def row_key(row: Row, names: Sequence[str]) -> bytes:
    """Sha256 of a pair's tokens and of what is asked about them."""
    digest = hashlib.sha256(" ".join(names).encode())
    for part in ("prompt_ids", "chosen_ids", "rejected_ids"):
        tokens = np.asarray(row[part], dtype="<i4")
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes())
    return digest.digest()


def _require_columns(rows: Sequence[Row], loss_types: Sequence[str]) -> None:
    """Refuse rows that lack what a loss needs, or have what it cannot use."""
    for name in loss_types:
        if name in ("odpo", "rpo") and any(row.get("margin") is None for row in rows):
            raise DataError(f"{name} needs a margin in every row: how much better the chosen answer was rated")
        if name in SORTED and any(row.get("weight", 1.0) != 1.0 or row.get("probability", 1.0) != 1.0 for row in rows):
            raise DataError(f"{name} sorts the rows of a batch, so they can have no weight and no soft label")
