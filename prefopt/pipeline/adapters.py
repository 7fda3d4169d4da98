"""The frame of every stage that trains a LoRA adapter: data in, rows, trainer, adapter and tokenizer out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from peft import PeftModel
from transformers import PreTrainedModel

from prefopt.data.load import Loaded
from prefopt.data.templates import Encoder
from prefopt.models.roles import POLICY, policy_on, save_adapter
from prefopt.models.targets import ALL_LINEAR, expert_blocks
from prefopt.pipeline.base_model import OpenBase, adapter_of, data_of, data_policy, load_weights, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import both_rows, training_cost
from prefopt.pipeline.training import final_metrics, kept_outputs, train
from prefopt.recipe.schema import AdapterSpec, DataSpec, DPOSpec, LoraSpec, PPOSpec, RewardSpec, SFTSpec
from prefopt.trainers.checkpoints import CheckpointedTrainer

Record = TypeVar("Record")


@dataclass(frozen=True)
class Job:
    """What a trainer is built from.

    Attributes:
        model: The base with the policy's adapter, and the reference's where it has one.
        base: Tokenizer and names.
        train: Tokenised rows.
        evaluation: Tokenised held-out rows; empty when nothing is held out.
        context: The stage's context.
        callbacks: To hand to the trainer.
    """

    model: PeftModel
    base: OpenBase
    train: Sequence[Mapping[str, Any]]
    evaluation: Sequence[Mapping[str, Any]]
    context: StageContext
    callbacks: list[Any]


@dataclass(frozen=True)
class Method(Generic[Record]):
    """What differs between the methods.

    Attributes:
        load: Reads the records of data sets, by name, from the recipe's, with the recipe's seed.
        row: Tokenises a record; None drops it, and the encoder counts why.
        trainer: Builds the trainer.
        reference: Whether the policy that the stage starts from is needed beside the one it trains.
    """

    load: Callable[[tuple[str, ...], Mapping[str, DataSpec], int], Loaded[Record]]
    row: Callable[[Record, Encoder], Mapping[str, Any] | None]
    trainer: Callable[[Job], CheckpointedTrainer]
    reference: bool


@dataclass(frozen=True)
class Rows:
    """What a stage trains on.

    Attributes:
        train: Tokenised rows.
        evaluation: Tokenised held-out rows; empty when nothing is held out.
        details: What became of every row, for the manifest.
    """

    train: Sequence[Mapping[str, Any]]
    evaluation: Sequence[Mapping[str, Any]]
    details: dict[str, Any]


def encoded_rows(
    spec: SFTSpec | DPOSpec | RewardSpec,
    inputs: Inputs,
    context: StageContext,
    base: OpenBase,
    load: Callable[[tuple[str, ...], Mapping[str, DataSpec], int], Loaded[Record]],
    row: Callable[[Record, Encoder], Mapping[str, Any] | None],
) -> Rows:
    """Read and tokenise the data of a stage; arguments as in `Method`.

    Raises:
        DataError: When too many rows cannot be used.
    """
    sets = data_of(inputs, context)
    data = load(spec.data, sets, context.recipe.seed)
    overlong, max_dropped = data_policy(spec.data, sets)
    encoder = base.encoder(spec.max_length, overlong)
    train_rows, eval_rows = (
        [encoded for record in records if (encoded := row(record, encoder)) is not None]
        for records in (data.train, data.eval)
    )
    encoder.check_drop_share(max_dropped)
    details = {"data": data.report.to_json(), "encoding": {"chat_template": base.template, **dict(encoder.counts)}}
    return Rows(train_rows, eval_rows, details)


def open_trained_policy(
    spec: SFTSpec | DPOSpec | PPOSpec, inputs: Inputs, context: StageContext, base: OpenBase, *, reference: bool
) -> PeftModel:
    """The base with the policy that a stage trains, and what it starts from."""
    weights = load_weights(base, context)
    lora = lora_of(spec, weights, context)
    init = adapter_of(spec.init, inputs)
    return policy_on(weights, lora, init, reference=reference, reshape=spec.lora is not None)


def lora_of(spec: AdapterSpec, weights: PreTrainedModel, context: StageContext) -> LoraSpec:
    """The shape of a new adapter of a stage; says what `all-linear` leaves out."""
    lora = spec.lora.over(context.recipe.model.lora) if spec.lora else context.recipe.model.lora
    blocks = expert_blocks(weights) if lora.lora_target_modules == ALL_LINEAR else []
    if blocks:
        context.log(f"all-linear: routers and experts stay as they are ({len(blocks)} blocks, as {blocks[0]})")
    return lora


def run_adapter_stage(
    spec: SFTSpec | DPOSpec, inputs: Inputs, context: StageContext, method: Method[Record]
) -> StageResult:
    """Train the adapter of a stage; writes `adapter/` and `tokenizer/`.

    Args:
        spec: The stage's options.
        inputs: Finished input stages.
        context: The stage's context.
        method: What differs from other stages.
    """
    base = open_base(inputs, context)
    rows = encoded_rows(spec, inputs, context, base, method.load, method.row)
    model = open_trained_policy(spec, inputs, context, base, reference=method.reference)

    def build(callbacks: list[Any]) -> CheckpointedTrainer:
        built = method.trainer(Job(model, base, rows.train, rows.evaluation, context, callbacks))
        built.base_name = base.location.name
        return built

    trained = train(build, spec, context)
    if context.rank > 0:
        return StageResult({}, [])
    save_adapter(model, POLICY, context.directory / "adapter", base.location.name)
    base.tokenizer.save_pretrained(context.directory / "tokenizer")
    return StageResult(
        metrics=final_metrics(context),
        outputs=["adapter", "tokenizer", *kept_outputs(spec)],
        details=rows.details,
        cost=training_cost(trained, once=both_rows(rows.train) if method.reference else ()),
    )
