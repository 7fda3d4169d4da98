"""The prompts of recipes/stories_sentiment.yaml: openings of stories, sampled from the pretrained story model.

usage: python tests/benchmarks/story_openings.py MODEL_FOLDER > recipes/story_openings.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from prefopt.models.generate import SamplingOptions, sample  # noqa: E402 - the package beside this script

OPENINGS = 640
TOKENS = 12


def main(folder: str) -> None:
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = SamplingOptions(max_new_tokens=TOKENS, batch_size=OPENINGS, seed=1234)
    samples = sample(model, tokenizer, [[tokenizer.bos_token_id]] * OPENINGS, options)
    for text in dict.fromkeys(answer.text.strip() for answer in samples if not answer.finished):
        print(json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1])
