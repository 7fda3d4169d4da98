"""`kind: sft`: supervised fine-tuning of a LoRA adapter on demonstrations, or on the chosen side of pairs."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from prefopt.pipeline.adapters import (
    Job,
    Method,
    Opened,
    Rows,
    demonstration_rows,
    open_adapter_stage,
    run_adapter_stage,
)
from prefopt.pipeline.base_model import OpenBase
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.group_weights import grouped, weighed
from prefopt.pipeline.loss_costs import flagged_rows, open_loss_costs, open_sequence_unlikelihood
from prefopt.recipe.options.groups import VIOLATES
from prefopt.recipe.schema import SFTSpec
from prefopt.rewards.flags import WeightedCost
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.trl import SFTConfig, SFTTrainer, language_modeling_rows


def run(spec: SFTSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to give the demonstrated completions; the loss is on completions only."""
    return run_adapter_stage(spec, inputs, context, _method(inputs, context))


def opened(spec: SFTSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    return open_adapter_stage(spec, inputs, context, _method(inputs, context))


def _method(inputs: Inputs, context: StageContext) -> Method:
    def trainer(job: Job, tokenizer: PreTrainedTokenizerBase) -> SFTTrainer:
        args = training_arguments(
            SFTConfig,
            job.spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            max_length=None,  # rows are tokenised and within the limit: TRL must not cut them
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            focal_gamma=job.spec.focal_gamma,
        )
        return SFTTrainer(
            model=job.model,
            args=args,
            train_dataset=language_modeling_rows(job.train),
            eval_dataset=language_modeling_rows(job.evaluation) if job.evaluation else None,
            processing_class=tokenizer,
            sequence_unlikelihood=open_sequence_unlikelihood(job.spec.sequence_unlikelihood, inputs, context),
            callbacks=job.callbacks,
        )

    def rows(spec: SFTSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> Rows:
        column = spec.group_by if spec.group_weights != "none" and spec.group_by != VIOLATES else None
        rows = demonstration_rows(spec.data, spec.max_length, inputs, context, base, weighted=True, column=column)
        rows = weighed(grouped(rows, spec, inputs, context, base), spec)
        return _flagged(rows, open_loss_costs(spec.unlikelihood, inputs, context), base) if spec.unlikelihood else rows

    return Method(rows, trainer, reference=False)


def _flagged(rows: Rows, costs: list[WeightedCost], base: OpenBase) -> Rows:
    """Rows with the tokens that violate flagged, held-out ones too: their loss is the same."""
    train, of_train = flagged_rows(rows.train, costs, base.tokenizer)
    evaluation, of_evaluation = flagged_rows(rows.evaluation, costs, base.tokenizer)
    flagged = {"train": of_train, "eval": of_evaluation}
    return Rows(train, evaluation, {**rows.details, "flagged": flagged})
