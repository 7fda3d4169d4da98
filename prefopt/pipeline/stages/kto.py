"""`kind: kto`: Kahneman-Tversky optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data.load import load_unpaired
from prefopt.errors import DataError
from prefopt.pipeline.adapters import Job, Method, Opened, Rows, open_adapter_stage, run_adapter_stage
from prefopt.pipeline.base_model import OpenBase, data_of, data_policy
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import kto_cost
from prefopt.recipe.options.kto import ESTIMATES_KL, KTOLossOptions
from prefopt.recipe.schema import KTOSpec
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.rows import unpaired_ids
from prefopt.trainers.trl import KTOConfig, KTOTrainer
from prefopt.trainers.unpaired import imbalance


def run(spec: KTOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to make good completions likelier, and bad ones less likely."""
    return run_adapter_stage(spec, inputs, context, _method(spec, context))


def opened(spec: KTOSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    return open_adapter_stage(spec, inputs, context, _method(spec, context))


def _method(spec: KTOSpec, context: StageContext) -> Method:
    def trainer(job: Job, tokenizer: PreTrainedTokenizerBase) -> KTOTrainer:
        args = training_arguments(
            KTOConfig,
            job.spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            max_length=None,  # rows are tokenised and within the limit
            **{name: getattr(job.spec, name) for name in KTOLossOptions.model_fields},
        )
        return KTOTrainer(
            job.model,
            args,
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            processing_class=tokenizer,
            callbacks=job.callbacks,
        )

    cost = partial(kto_cost, estimates_kl=spec.loss_type in ESTIMATES_KL)
    return Method(_rows, trainer, reference=False, cost=cost)  # the trainer makes the copy


def _rows(spec: KTOSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> Rows:
    sets = data_of(inputs, context)
    loaded = load_unpaired(spec.data, sets, context.recipe.seed)
    weighted = sum(row.weight != 1 for row in loaded.train)
    if weighted:
        raise DataError(
            f"{weighted} rows of {', '.join(spec.data)} have a weight, and kto weighs good and bad rows alone",
            "leave `weight` out; desirable_weight and undesirable_weight are of the stage",
        )
    overlong, max_dropped = data_policy(spec.data, sets)
    encoder = base.encoder(spec.max_length, overlong, as_sampled=True)
    train, held_out = (unpaired_ids(rows, encoder) for rows in (loaded.train, loaded.eval))
    encoder.check_drop_share(max_dropped)
    if not train:
        raise DataError(f"stage {context.stage}: no completions to train on in {', '.join(spec.data)}")
    desirable = sum(row["label"] for row in train)
    said = imbalance(desirable, len(train) - desirable, spec.desirable_weight, spec.undesirable_weight)
    if said:
        context.log(said)
    details: dict[str, Any] = {
        "data": loaded.report.to_json(),
        "encoding": {"chat_template": base.template, **dict(encoder.counts)},
        "labels": {"desirable": desirable, "undesirable": len(train) - desirable},
    }
    return Rows(train, held_out, details)
