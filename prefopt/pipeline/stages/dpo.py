"""`kind: dpo`: direct preference optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedTokenizerBase

from prefopt.losses.pair_statistics import DPOOptions
from prefopt.pipeline.adapters import Job, Method, Opened, open_adapter_stage, run_adapter_stage
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.pair_rows import PAIR_COLUMNS, pair_rows
from prefopt.recipe.schema import DPOSpec
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.callbacks import WarnOfDisplacement
from prefopt.trainers.dpo import DPOConfig, DPOTrainer


def run(spec: DPOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to prefer the chosen completions."""
    return run_adapter_stage(spec, inputs, context, _method(context))


def opened(spec: DPOSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    return open_adapter_stage(spec, inputs, context, _method(context))


def _method(context: StageContext) -> Method:
    def trainer(job: Job, tokenizer: PreTrainedTokenizerBase) -> DPOTrainer:
        args = training_arguments(
            DPOConfig,
            job.spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            loss_type=list(job.spec.loss_type),
            loss_weights=None if job.spec.loss_weights is None else list(job.spec.loss_weights),
            **{name: getattr(job.spec, name) for name in DPOOptions._fields},
        )
        return DPOTrainer(
            job.model,
            args,
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            processing_class=tokenizer,
            callbacks=[*job.callbacks, WarnOfDisplacement(context.log)],
        )

    return Method(partial(pair_rows, columns=PAIR_COLUMNS), trainer, reference=True)
