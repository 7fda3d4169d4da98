"""`kind: dpo`: direct preference optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

from prefopt.data.load import load_pairs
from prefopt.losses.pair_statistics import DPOOptions
from prefopt.pipeline.adapters import Job, Method, run_adapter_stage
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.recipe.schema import DPOSpec
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.callbacks import WarnOfDisplacement
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from prefopt.trainers.rows import pair_row


def run(spec: DPOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to prefer the chosen completions."""

    def trainer(job: Job) -> DPOTrainer:
        args = training_arguments(
            DPOConfig,
            spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            loss_type=list(spec.loss_type),
            loss_weights=None if spec.loss_weights is None else list(spec.loss_weights),
            **{name: getattr(spec, name) for name in DPOOptions._fields},
        )
        return DPOTrainer(
            job.model,
            args,
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            processing_class=job.base.tokenizer,
            callbacks=[*job.callbacks, WarnOfDisplacement(context.log)],
        )

    return run_adapter_stage(spec, inputs, context, Method(load_pairs, pair_row, trainer, reference=True))
