"""The task that all methods of the frontier solve: happier stories by a pretrained model of 260 thousand parameters.

Prompts are openings of 12 tokens that the model itself wrote; a completion has at most 48 tokens, and its reward is the
sum of its words' valences in the VADER list. The peers' side defines all of this (peer_trl_frontier.py); here it is put
into the files that recipes read, once for everybody.

The model begins many stories alike. Training has each opening once, as a `prompts` data set does anyway; the held-out
ones stay as they were drawn, since the base and the limit are measured on them, and many of them are also trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.splits import prompt_key
from prefopt.records import Message
from prefopt.rewards.scorers import LexiconScorer
from tests.benchmarks.against_trl.peers import peer_script, peers_folder

PEER = "peer_trl_frontier.py"
TRAINING, HELD_OUT = 448, 512
"""Openings that are drawn."""
NEW_TOKENS = 48


@cache
def peer() -> ModuleType:
    """The peers' script, imported."""
    return peer_script(PEER)


def lexicon() -> Path:
    """The word list."""
    return peers_folder().parent / "data" / "vader-sentiment" / "vader_lexicon.txt"


def scorer() -> LexiconScorer:
    """Says what a completion is worth."""
    return LexiconScorer(lexicon())


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model, frozen, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(peer().MODEL, dtype=torch.float32)
    return model.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(peer().MODEL)


def write_prompts(folder: Path) -> None:
    """Write training.jsonl and held_out.jsonl, as `format: messages`; nothing where they are already."""
    files = {"training.jsonl": TRAINING, "held_out.jsonl": HELD_OUT}
    if all((folder / name).is_file() for name in files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load()
    texts = peer().openings(model, tokenizer, TRAINING + HELD_OUT)
    start = 0
    for name, count in files.items():
        rows = [{"messages": [{"role": "user", "content": text}]} for text in texts[start : start + count]]
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        start += count


def read_prompts(folder: Path, name: str) -> list[str]:
    """The texts of training.jsonl or held_out.jsonl."""
    lines = (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def distinct(texts: Iterable[str]) -> list[str]:
    """Openings without those that a recipe's data would drop as repeated, in their order."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(key_of(text), text)
    return list(found.values())


def key_of(text: str) -> str:
    """The same for openings that count as one."""
    return prompt_key((Message("user", text),))


def training_prompts(folder: Path) -> list[str]:
    """What every method trains on: the distinct openings of training.jsonl."""
    return distinct(read_prompts(folder, "training"))


def unseen(folder: Path) -> list[bool]:
    """Of each held-out opening, whether no method trains on it."""
    trained_on = {key_of(text) for text in read_prompts(folder, "training")}
    return [key_of(text) not in trained_on for text in read_prompts(folder, "held_out")]


def counts(folder: Path) -> dict[str, int]:
    """Openings that were drawn for training, those of them that differ, those held out, those of them unseen."""
    of_unseen = unseen(folder)
    return {
        "drawn": len(read_prompts(folder, "training")),
        "distinct": len(training_prompts(folder)),
        "held_out": len(of_unseen),
        "unseen": sum(of_unseen),
    }
