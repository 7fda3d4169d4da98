"""What a context costs while a model samples: time of a token with it and without it."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.models.generate import SamplingOptions, sample
from tests.benchmarks.against_trl.peers import peers_folder

CONTEXTS = (64, 128, 256, 400)
PROMPT, NEW_TOKENS, ROWS, REPEATS = 12, 48, 64, 5


def gained() -> dict[str, dict[str, float]]:
    """Tokens of a context → `with` and `without` it, seconds for a token of 64 rows together, and their ratio."""
    models = os.environ.get("PREFOPT_MODELS")
    folder = Path(models) if models else peers_folder().parent / "models"
    path = folder / "stories260k-hf"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    rng = torch.Generator().manual_seed(0)
    found = {}
    for context in CONTEXTS:
        ids = torch.randint(3, len(tokenizer), (ROWS, context + PROMPT), generator=rng).tolist()
        # In turns, so that whatever else the machine does falls on both.
        pairs = [(_seconds(model, tokenizer, ids), _seconds(model, tokenizer, [row[context:] for row in ids]))
                 for _ in range(REPEATS + 1)][1:]  # fmt: skip
        long, short = (statistics.median(times) for times in zip(*pairs, strict=True))
        found[str(context)] = {"with": long, "without": short, "gained": long / short}
    return found


def _seconds(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> float:
    """Wall time of one token of all rows together."""
    options = SamplingOptions(NEW_TOKENS, min_new_tokens=NEW_TOKENS, batch_size=len(prompts))
    start = time.perf_counter()
    sample(model, tokenizer, prompts, options)
    return (time.perf_counter() - start) / NEW_TOKENS
