"""Writes a model with random weights and random pairs whose rows all have the same number of tokens.

usage: python -m tests.benchmarks.against_trl.random_pairs OUT_DIR --shape NAME [--tokens 1024] [--pairs 64]

The folder is one of the kind that the peers' make_model.py writes: `model/` and `pairs.jsonl`. Every character of a
text is one token, three quarters of a row are its prompt, and the end token is counted.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM as CausalLM
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

SPECIAL = ("<pad>", "<s>", "</s>")
LETTERS = string.ascii_letters + string.digits
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}


def shapes() -> dict[str, PreTrainedConfig]:
    """By name: the benchmark's model with a vocabulary of 32,000, and that of Qwen2 0.5B."""
    llama = LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=2048, dtype="float32", **_IDS,
    )  # fmt: skip
    qwen2 = Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32_768, dtype="bfloat16", **_IDS,
    )  # fmt: skip
    return {"llama-32k": llama, "qwen2-0.5b": qwen2}


def write(folder: Path, config: PreTrainedConfig, tokens: int, pairs: int) -> None:
    """Write model, tokenizer and pairs.

    Args:
        folder: Where they go.
        config: Of the model; its special tokens are 0, 1 and 2.
        tokens: Of every row.
        pairs: How many.
    """
    # Bytes that nothing merges, since `AutoTokenizer` makes a byte-level BPE for Qwen2 whatever the folder says; the
    # vocabulary is filled up with tokens that no text has.
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"<{number}>" for number in range(len(pieces), config.vocab_size)]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "model")
    torch.manual_seed(0)
    CausalLM.from_config(config, dtype=config.dtype).save_pretrained(folder / "model")
    drawn = random.Random(0)
    prompt, answer = tokens * 3 // 4, tokens - tokens * 3 // 4 - 1
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        for _ in range(pairs):
            texts = ["".join(drawn.choices(LETTERS, k=count)) for count in (prompt, answer, answer)]
            file.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=shapes(), required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=64)
    a = parser.parse_args()
    write(a.out, shapes()[a.shape], a.tokens, a.pairs)


if __name__ == "__main__":
    main()
