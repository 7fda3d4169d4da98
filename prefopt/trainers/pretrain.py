"""A small causal language model and its tokenizer from scratch: the base of worlds that have none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.models.batches import pad_rows
from prefopt.recipe.schema import PretrainSpec
from prefopt.trainers.checkpoints import CheckpointedTrainer

PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
# One token opens a turn and one closes the answer; the template's markers are single tokens, so that prompts are short.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE with padding, begin, end and role tokens of its own and a chat template.

    Args:
        texts: What to learn the merges from, without control tokens.
        vocab_size: Entries, the 256 bytes and 6 control tokens included.
    """
    control = [PAD, BOS, EOS, *ROLE_TOKENS]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True) for token in control],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLE_TOKENS),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_llama(spec: PretrainSpec, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of the stage's size, initialised from torch's current random state.

    The usual initial spread of 0.02 is for widths of a thousand: a model of width 96 that starts there needs several
    times the steps before it learns to copy from its context.
    """
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_hidden_layers=spec.num_hidden_layers,
            num_attention_heads=spec.num_attention_heads,
            num_key_value_heads=spec.num_attention_heads,
            max_position_embeddings=spec.max_position_embeddings,
            initializer_range=spec.initializer_range or spec.hidden_size**-0.5,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def assistant_labels(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Labels of a rendered conversation: the assistant's turns with their end token, -100 elsewhere.

    A small model that must also predict what users say learns to answer from the context much more slowly.

    Args:
        ids: Tokens of a conversation under `CHAT_TEMPLATE`.
        tokenizer: A tokenizer of `train_tokenizer`.
    """
    opens, closes = tokenizer.convert_tokens_to_ids([ROLE_TOKENS[-1], EOS])
    labels, answering = [], False
    for token in ids:
        labels.append(token if answering else -100)
        answering = (answering or token == opens) and token != closes
    return labels


class LanguageModelingCollator:
    """Pads rows of `input_ids` and `labels` on the right; padding is no label."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate B rows."""
        return {
            "input_ids": pad_rows([row["input_ids"] for row in rows], self.pad_token_id),
            "attention_mask": pad_rows([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": pad_rows([row["labels"] for row in rows], -100),
        }


class PretrainTrainer(CheckpointedTrainer):
    """`transformers.Trainer` on all weights, with checkpoints that survive a kill and runs that stop at NaN."""

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Loss of an evaluation batch, over its own tokens: a batch is the same on however many ranks."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, inputs)
        return loss.detach(), None, None
