"""`kind: pretrain`: a small Llama and its tokenizer from scratch."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from transformers import TrainingArguments

from prefopt.data.load import load_texts
from prefopt.data.templates import Encoder
from prefopt.errors import InputError
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
    data = load_texts(spec.data, context.recipe.data, context.recipe.seed)
    tokenizer = train_tokenizer(itertools.chain.from_iterable(map(_plain, data.train)), spec.vocab_size)
    length = spec.max_length or spec.max_position_embeddings
    if length > spec.max_position_embeddings:
        raise InputError(f"max_length {length} is more than max_position_embeddings {spec.max_position_embeddings}")

    encoder = Encoder(tokenizer, length)

    def rows(documents: list[Document]) -> list[dict[str, Any]]:
        return [row for document in documents for row in _rows(document, encoder, tokenizer, length)]

    train_rows, eval_rows = rows(data.train), rows(data.eval)
    torch.manual_seed(context.seed)
    model = new_llama(spec, tokenizer)
    context.log(f"{len(train_rows)} rows, {model.num_parameters():,} parameters, {len(tokenizer)} tokens")

    def build(callbacks: list[Any]) -> PretrainTrainer:
        args = training_arguments(
            TrainingArguments, spec, directory=context.directory, seed=context.seed, dtype="float32"
        )
        return PretrainTrainer(
            model=model,
            args=args,
            data_collator=LanguageModelingCollator(tokenizer.pad_token_id),
            train_dataset=train_rows,
            eval_dataset=eval_rows or None,
            callbacks=callbacks,
        )

    trained = train(build, spec, context)
    if context.rank > 0:
        return StageResult({}, [])
    model.save_pretrained(context.directory / "model")
    tokenizer.save_pretrained(context.directory / "model")
    details = {"data": data.report.to_json(), "rows": len(train_rows), "parameters": model.num_parameters()}
    cost = training_cost(trained, full=True)
    return StageResult(metrics=final_metrics(context), outputs=["model"], details=details, cost=cost)


def _plain(document: Document) -> list[str]:
    return [document] if isinstance(document, str) else [message.content for message in document]


def _rows(document: Document, encoder: Encoder, tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """A text is learned whole, a conversation by its answers; what is longer than a row is cut into several."""
    ids = encoder.encode_text(document)
    labels = ids if isinstance(document, str) else assistant_labels(ids, tokenizer)
    rows = [{"input_ids": ids[i : i + length], "labels": labels[i : i + length]} for i in range(0, len(ids), length)]
    # The first token of a row is never predicted, so a row may have nothing to learn from.
    return [row for row in rows if any(label != -100 for label in row["labels"][1:])]
