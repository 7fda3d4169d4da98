"""`kind: sft`: supervised fine-tuning of a LoRA adapter on demonstrations, or on the chosen side of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data.load import Loaded, load_demonstrations
from prefopt.data.templates import Encoder
from prefopt.errors import DataError
from prefopt.pipeline.adapters import Job, Method, Opened, encoded_rows, open_adapter_stage, run_adapter_stage
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.recipe.schema import DataSpec, SFTSpec
from prefopt.records import Demonstration
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.trl import SFTConfig, SFTTrainer, language_modeling_rows


def run(spec: SFTSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to give the demonstrated completions; the loss is on completions only."""
    return run_adapter_stage(spec, inputs, context, _method(context))


def opened(spec: SFTSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    return open_adapter_stage(spec, inputs, context, _method(context))


def _method(context: StageContext) -> Method:
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
        )
        return SFTTrainer(
            model=job.model,
            args=args,
            train_dataset=language_modeling_rows(job.train),
            eval_dataset=language_modeling_rows(job.evaluation) if job.evaluation else None,
            processing_class=tokenizer,
            callbacks=job.callbacks,
        )

    return Method(partial(encoded_rows, load=_load, row=_row), trainer, reference=False)


def _load(names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int) -> Loaded[Demonstration]:
    loaded = load_demonstrations(names, data, seed)
    weighted = sum(demonstration.weight != 1 for demonstration in loaded.train)
    if weighted:
        raise DataError(
            f"{weighted} rows of {', '.join(names)} have a weight, and sft would train on them as on all others",
            "leave `weight` out, or give the rows a data set of their own with max_samples",
        )
    return loaded


def _row(demonstration: Demonstration, encoder: Encoder) -> dict[str, Any] | None:
    ids = encoder.encode_demonstration(demonstration)
    return None if ids is None else {"prompt_ids": ids.prompt_ids, "completion_ids": ids.completion_ids}
