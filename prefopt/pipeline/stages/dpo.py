"""`kind: dpo`: direct preference optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

from prefopt.data.load import load_pairs
from prefopt.pipeline.adapters import Job, Method, run_adapter_stage
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.recipe.schema import DPOSpec
from prefopt.trainers.arguments import training_arguments
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
            beta=spec.beta,
            loss_type=spec.loss_type,
            label_smoothing=spec.label_smoothing,
        )
        return DPOTrainer(
            job.model,
            args,
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            processing_class=job.base.tokenizer,
            callbacks=job.callbacks,
        )

    return run_adapter_stage(spec, inputs, context, Method(load_pairs, pair_row, trainer, reference=True))
