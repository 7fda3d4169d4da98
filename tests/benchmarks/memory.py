"""Estimated and measured memory of training stages of several shapes, as the Markdown table of docs/memory.md.

    python tests/benchmarks/memory.py [NAME …]

Every row is one `prefopt check --deep` of a base with random weights, in a process of its own: the estimate comes from
steps of one and of two rows, the measurement from two real steps with the whole batch and an evaluation.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.pipeline.deep_check import DeepOptions, deep_check
from prefopt.pipeline.estimate import Estimate
from prefopt.recipe.load import load
from prefopt.trainers.pretrain import train_tokenizer

WORDS = "lamp chair kettle red blue green nine euro the is costs of with and from in black white old new".split()


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    vocabulary: int
    tokens: int
    rows: int
    evaluated: int = 1


SHAPES = {
    "deep, long rows": Shape(12, 256, 2048, 1024, 4),
    "deep, short rows": Shape(12, 256, 2048, 128, 32),
    "wide": Shape(4, 768, 2048, 512, 4),
    "large vocabulary": Shape(4, 256, 32000, 256, 8),
    "large evaluation": Shape(4, 256, 8000, 256, 2, evaluated=16),
}
METHODS = ("sft", "dpo", "reward", "ppo")


def write_base(shape: Shape, folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([" ".join(WORDS)], 320)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=shape.width // 64,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe(method: str, shape: Shape, recompute: bool, folder: Path) -> dict[str, Any]:
    """Every prompt is too long, so every row has exactly as many tokens as rows may have."""
    rng = random.Random(0)
    rows = []
    for _ in range(40):
        prompt, chosen, rejected = (" ".join(rng.choices(WORDS, k=k)) for k in (shape.tokens, 16, 16))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage: dict[str, Any] = {
        "kind": method,
        "max_length": shape.tokens,
        "activation_checkpointing": recompute,
        "per_device_train_batch_size": shape.rows,
        "per_device_eval_batch_size": shape.evaluated,
    }
    if method == "ppo":
        rows_of = {"rollout_batch_size": shape.rows, "total_episodes": shape.rows, "max_new_tokens": 32}
        stage |= {"prompts": "pairs", "reward": {"lexicon": str(folder / "words.txt")}, **rows_of}
        (folder / "words.txt").write_text("lamp\t1\nchair\t-1\n")
    else:
        stage |= {"data": "pairs"}
    return {
        "name": "memory",
        "model": {"model_name_or_path": str(folder / "base"), "lora": {"lora_r": 16}, "dtype": "float32"},
        "data": {"pairs": {"path": str(folder / "pairs.jsonl"), "eval_fraction": 0.4, "max_dropped": 1.0}},
        "stages": {"stage": stage},
    }


def look(method: str, shape: Shape, recompute: bool) -> tuple[Estimate, int]:
    """The estimate of a stage, and its measured peak."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(shape, folder / "base")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(method, shape, recompute, folder)))
        (found,) = deep_check(load(folder / "recipe.yaml"), DeepOptions(folder / "run"), lambda line: None)
    if found.error is not None:
        raise found.error
    assert found.report is not None
    memory = found.report["memory"]
    return Estimate.from_json(memory), memory["measured"]


def line(name: str, method: str, shape: Shape, recompute: bool) -> str:
    estimate, measured = look(method, shape, recompute)
    estimated, taken = estimate.peak - estimate.before_model, measured - estimate.before_model
    mebibytes = [f"{size / 2**20:.0f}" for size in (estimated, taken)]
    whole = f"{estimate.peak / measured - 1:+.0%}"
    cells = [name, method, f"{shape.layers} x {shape.width}", shape.vocabulary, f"{shape.rows} x {shape.tokens}"]
    cells += ["on" if recompute else "off", *mebibytes, f"{estimated / taken - 1:+.0%}", whole]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    wanted = sys.argv[1:] or [f"{name}/{method}" for name in SHAPES for method in METHODS]
    print(
        "| shape | stage | layers x width | vocabulary | rows x tokens | checkpointing | estimated | measured |", end=""
    )
    print(" error | of the process |")
    print("|" + "---|" * 10)
    for name, method in (entry.split("/") for entry in wanted):
        for recompute in (False, True):
            print(line(name, method, SHAPES[name], recompute), flush=True)


if __name__ == "__main__":
    main()
