"""`kind: pretrain`: a small Llama and its tokenizer from scratch."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from transformers import LlamaForCausalLM, TrainingArguments

from prefopt.data.load import load_texts
from prefopt.data.templates import Encoder
from prefopt.errors import InputError
from prefopt.pipeline.adapters import Job, Opened, Rows
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import training_cost
from prefopt.pipeline.training import final_metrics, train
from prefopt.recipe.schema import PretrainSpec
from prefopt.records import Message
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.pretrain import (
    LanguageModelingCollator,
    PretrainTrainer,
    assistant_labels,
    new_llama,
    train_tokenizer,
)

Document = str | tuple[Message, ...]


def run(spec: PretrainSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Learn a tokenizer on the texts, then train a new model on them; writes `model/`."""
    stage = opened(spec, inputs, context)
    model = stage.load()
    size = f"{model.num_parameters():,} parameters, {len(stage.tokenizer)} tokens"
    context.log(f"{len(stage.rows.train)} rows, {size}")
    trained = train(lambda callbacks: stage.build(spec, model, callbacks), spec, context)
    if context.rank > 0:
        return StageResult({}, [])
    model.save_pretrained(context.directory / "model")
    stage.tokenizer.save_pretrained(context.directory / "model")
    details = {**stage.rows.details, "rows": len(stage.rows.train), "parameters": model.num_parameters()}
    cost = training_cost(trained, full=True)
    return StageResult(metrics=final_metrics(context), outputs=["model"], details=details, cost=cost)


def opened(spec: PretrainSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained, its tokenizer learned."""
    data = load_texts(spec.data, context.recipe.data, context.recipe.seed)
    tokenizer = train_tokenizer(itertools.chain.from_iterable(map(_plain, data.train)), spec.vocab_size)
    length = spec.max_length or spec.max_position_embeddings
    if length > spec.max_position_embeddings:
        raise InputError(f"max_length {length} is more than max_position_embeddings {spec.max_position_embeddings}")

    encoder = Encoder(tokenizer, length)

    def rows(documents: list[Document]) -> list[dict[str, Any]]:
        return [row for document in documents for row in _rows(document, encoder, tokenizer, length)]

    def load() -> LlamaForCausalLM:
        torch.manual_seed(context.seed)
        return new_llama(spec, tokenizer)

    def trainer(job: Job) -> PretrainTrainer:
        return PretrainTrainer(
            model=job.model,
            args=training_arguments(
                TrainingArguments, job.spec, directory=context.directory, seed=context.seed, dtype="float32"
            ),
            data_collator=LanguageModelingCollator(tokenizer.pad_token_id),
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            callbacks=job.callbacks,
        )

    texts = Rows(rows(data.train), rows(data.eval), {"data": data.report.to_json()})
    return Opened(tokenizer, context.stage, texts, load, trainer)


def _plain(document: Document) -> list[str]:
    return [document] if isinstance(document, str) else [message.content for message in document]


def _rows(document: Document, encoder: Encoder, tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """A text is learned whole, a conversation by its answers; what is longer than a row is cut into several."""
    ids = encoder.encode_text(document)
    labels = ids if isinstance(document, str) else assistant_labels(ids, tokenizer)
    rows = [{"input_ids": ids[i : i + length], "labels": labels[i : i + length]} for i in range(0, len(ids), length)]
    # The first token of a row is never predicted, so a row may have nothing to learn from.
    return [row for row in rows if any(label != -100 for label in row["labels"][1:])]
