"""The frame of every stage that trains a LoRA adapter: data in, rows, trainer, adapter and tokenizer out.

A stage is opened first (its data read, nothing loaded), and then trained. `prefopt check --deep` opens it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.load import load_demonstrations
from prefopt.errors import DataError
from prefopt.models.roles import POLICY, policy_on, save_adapter
from prefopt.models.targets import ALL_LINEAR, expert_blocks, require_modules
from prefopt.pipeline.base_model import OpenBase, adapter_of, data_of, data_policy, load_weights, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import training_cost
from prefopt.pipeline.training import final_metrics, kept_outputs, train
from prefopt.recipe.schema import AdapterSpec, DistillSpec, DPOSpec, KTOSpec, LoraSpec, OnlineSpec, SFTSpec
from prefopt.records import Demonstration
from prefopt.trainers.checkpoints import CheckpointedTrainer

Tokenised = Sequence[Mapping[str, Any]]
OfflineSpec = SFTSpec | DPOSpec | KTOSpec


@dataclass(frozen=True)
class Job:
    """What a trainer is built from.

    Attributes:
        spec: The stage's options.
        model: What `Opened.load` gave.
        train: Tokenised rows.
        evaluation: Tokenised held-out rows; empty when nothing is held out.
        callbacks: To hand to the trainer.
    """

    spec: Any
    model: Any
    train: Tokenised
    evaluation: Tokenised
    callbacks: list[Any]


@dataclass(frozen=True)
class Rows:
    """What a stage trains on.

    Attributes:
        train: Tokenised rows.
        evaluation: Tokenised held-out rows; empty when nothing is held out.
        details: What became of every row, for the manifest.
    """

    train: Tokenised
    evaluation: Tokenised
    details: dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """A stage that could be trained now.

    Attributes:
        tokenizer: With a chat template.
        name: Of the base, as artefacts record it.
        rows: What it trains on.
        load: Loads the base and hangs on it what is trained, and the reference where there is one.
        trainer: Builds the trainer.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    rows: Rows
    load: Callable[[], Any]
    trainer: Callable[[Job], CheckpointedTrainer]

    def build(self, spec: Any, model: Any, callbacks: list[Any]) -> CheckpointedTrainer:
        """The trainer of the whole stage."""
        built = self.trainer(Job(spec, model, self.rows.train, self.rows.evaluation, callbacks))
        built.base_name = self.name
        return built


@dataclass(frozen=True)
class Method:
    """What differs between the methods.

    Attributes:
        rows: Reads and tokenises the data of a stage.
        trainer: Builds the trainer, with the tokenizer.
        reference: Whether the policy that the stage starts from is needed beside the one it trains.
        head_share: Which part of the rows' tokens goes through the language-model head.
        cost: What training computed, where that is not `training_cost`.
    """

    rows: Callable[[Any, Inputs, StageContext, OpenBase], Rows]
    trainer: Callable[[Job, PreTrainedTokenizerBase], CheckpointedTrainer]
    reference: bool
    head_share: Callable[[Tokenised], float] = lambda rows: 1.0
    cost: Callable[[CheckpointedTrainer], dict[str, float]] | None = None


def demonstration_rows(  # noqa: PLR0913  (keyword-only)
    names: tuple[str, ...],
    max_length: int | None,
    inputs: Inputs,
    context: StageContext,
    base: OpenBase,
    *,
    weighted: bool = False,
    column: str | None = None,
) -> Rows:
    """Read and tokenise data sets whose completions are imitated, in memory; pairs are `prefopt.pipeline.pair_rows`.

    Args:
        names: Of the recipe's data sets.
        max_length: Tokens of a row; None for what the model takes.
        inputs: Finished input stages.
        context: The stage's context.
        base: With the tokenizer.
        weighted: Whether the trainer knows weights of rows.
        column: Of the records, or of their source, which the rows are to have as well.

    Returns:
        Rows with `prompt_ids` and `completion_ids`; with `weight` where one of them is not 1.

    Raises:
        DataError: For rows with a weight that the trainer does not know; when too many rows cannot be used.
    """
    sets = data_of(inputs, context)
    loaded = load_demonstrations(names, sets, context.recipe.seed)
    unlike = sum(demonstration.weight != 1 for demonstration in loaded.train)
    if unlike and not weighted:
        raise DataError(
            f"{unlike} rows of {', '.join(names)} have a weight, and they would be imitated as all others are",
            "leave `weight` out, or give the rows a data set of their own with max_samples",
        )
    overlong, max_dropped = data_policy(names, sets)
    encoder = base.encoder(max_length, overlong, as_sampled=True)
    has_weights = any(demonstration.weight != 1 for part in (loaded.train, loaded.eval) for demonstration in part)
    train, held_out = (
        [
            {
                "prompt_ids": ids.prompt_ids,
                "completion_ids": ids.completion_ids,
                **({"weight": demonstration.weight} if has_weights else {}),
                **({column: _text_of(demonstration, column)} if column else {}),
            }
            for demonstration in demonstrations
            if (ids := encoder.encode_demonstration(demonstration)) is not None
        ]
        for demonstrations in (loaded.train, loaded.eval)
    )
    encoder.check_drop_share(max_dropped)
    details = {"data": loaded.report.to_json(), "encoding": {"chat_template": base.template, **dict(encoder.counts)}}
    return Rows(train, held_out, details)


def _text_of(demonstration: Demonstration, column: str) -> str:
    return demonstration.source if column == "source" else str(demonstration.extra.get(column, ""))


def open_trained_policy(
    spec: OfflineSpec | OnlineSpec | DistillSpec,
    inputs: Inputs,
    context: StageContext,
    base: OpenBase,
    *,
    reference: bool,
) -> PeftModel:
    """The base with the policy that a stage trains, and what it starts from."""
    weights = load_weights(base, context)
    lora = lora_of(spec, weights, context)
    init = adapter_of(spec.init, inputs)
    return policy_on(weights, lora, init, reference=reference, reshape=spec.lora is not None)


def lora_of(spec: AdapterSpec, weights: PreTrainedModel, context: StageContext) -> LoraSpec:
    """The shape of a new adapter of a stage; says what `all-linear` leaves out.

    Raises:
        InputError: When it names modules that the model does not have.
    """
    lora = spec.lora.over(context.recipe.model.lora) if spec.lora else context.recipe.model.lora
    if not isinstance(lora.lora_target_modules, str):
        require_modules(weights, lora.lora_target_modules)
    blocks = expert_blocks(weights) if lora.lora_target_modules == ALL_LINEAR else []
    if blocks:
        context.log(f"all-linear: routers and experts stay as they are ({len(blocks)} blocks, as {blocks[0]})")
    return lora


def open_adapter_stage(spec: OfflineSpec, inputs: Inputs, context: StageContext, method: Method) -> Opened:
    """Read and tokenise the data of a stage; arguments as in `run_adapter_stage`."""
    base = open_base(inputs, context)
    rows = method.rows(spec, inputs, context, base)

    def load() -> PeftModel:
        return open_trained_policy(spec, inputs, context, base, reference=method.reference)

    return Opened(base.tokenizer, base.location.name, rows, load, lambda job: method.trainer(job, base.tokenizer))


def run_adapter_stage(spec: OfflineSpec, inputs: Inputs, context: StageContext, method: Method) -> StageResult:
    """Train the adapter of a stage; writes `adapter/` and `tokenizer/`.

    Args:
        spec: The stage's options.
        inputs: Finished input stages.
        context: The stage's context.
        method: What differs from other stages.
    """
    opened = open_adapter_stage(spec, inputs, context, method)
    model = opened.load()
    trained = train(lambda callbacks: opened.build(spec, model, callbacks), spec, context)
    if context.rank > 0:
        return StageResult({}, [])
    save_adapter(model, POLICY, context.directory / "adapter", opened.name)
    opened.tokenizer.save_pretrained(context.directory / "tokenizer")
    if method.cost is not None:
        cost = method.cost(trained)
    else:
        cost = training_cost(trained, head=method.head_share(opened.rows.train), reference=method.reference)
    return StageResult(
        metrics=final_metrics(context),
        outputs=["adapter", "tokenizer", *kept_outputs(spec)],
        details=opened.rows.details,
        cost=cost,
    )
