"""Openings and whole stories by the pretrained model of 260 thousand parameters, in the files that recipes read.

Openings have 16 tokens, each is there once, and those that training sees are none of those that are held out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.models.generate import SamplingOptions, sample

DRAWN, OPENING = 9000, 16
TRAINING, HELD_OUT = 512, 4200
"""Openings; of those that are held out, 4,096 are answered."""
STORIES, UNSEEN, STORY = 2200, 500, 144
"""Stories, those of them that are only measured on, and their tokens."""
SEED = 1234


def model_folder() -> Path:
    """The pretrained story model."""
    return Path(os.environ["PREFOPT_MODELS"]) / "stories260k-hf"


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    return model.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(model_folder())


def write(folder: Path) -> None:
    """Write training.jsonl, held_out.jsonl, unseen.jsonl and stories.jsonl; nothing where they are already."""
    if (folder / "stories.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load()
    options = SamplingOptions(max_new_tokens=OPENING, batch_size=1000, seed=SEED)
    drawn = sample(model, tokenizer, [[tokenizer.bos_token_id]] * DRAWN, options)
    openings = list(dict.fromkeys(each.text.strip() for each in drawn if not each.finished))
    if len(openings) < TRAINING + HELD_OUT:
        raise ValueError(f"{len(openings)} different openings are too few")
    _write(folder / "training.jsonl", map(_asked, openings[:TRAINING]))
    _write(folder / "held_out.jsonl", map(_asked, openings[TRAINING : TRAINING + HELD_OUT]))
    options = SamplingOptions(max_new_tokens=STORY, batch_size=550, seed=SEED + 1)
    written = sample(model, tokenizer, [[tokenizer.bos_token_id]] * STORIES, options)
    rows = [
        {"prompt": tokenizer.decode(each.ids[:OPENING]).strip(), "completion": tokenizer.decode(each.ids[OPENING:])}
        for each in written
        if not each.finished
    ]
    _write(folder / "unseen.jsonl", rows[:UNSEEN])
    _write(folder / "stories.jsonl", rows[UNSEEN:])


def _asked(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}]}


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
