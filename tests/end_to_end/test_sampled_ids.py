"""Through the command line: what a policy sampled is what dpo, kto and sft learn from; a reward model reads texts."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prefopt.data.control import control_tokens
from prefopt.data.token_rows import TRAIN, TokenRows
from tests.end_to_end.small import environment, folder, lines_of, prefopt
from tests.tiny import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.slow

RECIPE = """\
name: own
model: {model_name_or_path: MODEL, dtype: float32, chat_template: plain, lora: {lora_r: 4, lora_alpha: 8}}
data:
  openings: {path: ./openings.jsonl, eval_fraction: 0.2}
stages:
  own:
    kind: collect
    policies: base
    prompts: openings
    judge: {lexicon: ./words.txt, labels: sign}
    samples_per_prompt: 6
    max_new_tokens: 40
  dpo: &train
    kind: dpo
    data: own
    max_steps: 1
    per_device_train_batch_size: 4
    logging_steps: 1
    save_steps: 2
  kto: {<<: *train, kind: kto}
  sft: {<<: *train, kind: sft}
  reward: {<<: *train, kind: reward}
"""
NAMES = ("Lily", "Tom", "Sam", "Mia", "Ben", "Anna", "Max", "Sue")
END = 2


def run(root: Path, model: str) -> Path:
    openings = [
        f"Once upon a time, there was a {who} {name}. {name}" for name in NAMES for who in ("girl", "boy named")
    ]
    (root / "openings.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in openings))
    # Letters stand in for words: what a model of random weights writes has hardly any.
    (root / "words.txt").write_text(
        "".join(f"{word}\t{n}\n" for n, word in enumerate("a i e t o was very happy sad".split()))
    )
    (root / "recipe.yaml").write_text(RECIPE.replace("MODEL", model))
    env = environment(PREFOPT_CACHE=str(root / "cache"))
    done = prefopt("run", root / "recipe.yaml", "--out", root / "run", timeout=300, env=env)
    assert done.returncode == 0, done.stderr + done.stdout
    return root / "run"


def sampled(out: Path) -> dict[tuple[str, str], list[Any]]:
    """What was sampled first of each text: whether it ended, and its tokens."""
    with sqlite3.connect(out / "ledger" / "ledger.sqlite3") as ledger:
        rows = ledger.execute("SELECT prompt, completion, finished, ids FROM samples").fetchall()
    found: dict[tuple[str, str], list[Any]] = {}
    for prompt, completion, finished, ids in rows:
        found.setdefault((prompt, completion), []).append((bool(finished), json.loads(ids)))
    return found


def prepared(root: Path, *, reward: bool) -> list[dict[str, Any]]:
    (entry,) = [
        rows.parent
        for rows in (root / "cache" / "rows").rglob("layout.json")
        if ("score_chosen" in json.loads(rows.read_text())["columns"]["numbers"]) == reward
    ]
    return list(TokenRows.of_set(entry, TRAIN))


def check(root: Path, out: Path, base: Path) -> set[bool]:
    """Trained tokens are sampled tokens, but where a control token is inside; returns whether completions ended."""
    known, ended = sampled(out), set()
    tokenizer = AutoTokenizer.from_pretrained(base)
    control = {*tokenizer.convert_tokens_to_ids(control_tokens(tokenizer))} - {END}
    stage = folder(out, "own")
    assert stage is not None
    pairs = lines_of(stage / "pairs.jsonl")
    offered, unfit = set(), 0
    for row in pairs:
        prompt = json.dumps([[each["role"], each["content"]] for each in row["prompt"]], ensure_ascii=False)
        for side in ("chosen", "rejected"):
            how = row[f"sampled_{side}"]
            assert (how["finished"], how["ids"]) in known[prompt, row[side]]
        offered.add(tuple(tuple(row[f"sampled_{side}"]["ids"]) for side in ("chosen", "rejected")))
        unfit += any(control & {*row[f"sampled_{side}"]["ids"]} for side in ("chosen", "rejected"))
    trained = prepared(root, reward=False)
    others = {(tuple(row["chosen_ids"]), tuple(row["rejected_ids"])) for row in trained} - offered
    assert len(others) <= unfit and len(others) < len(trained)
    for row in trained:
        for side in ("chosen_ids", "rejected_ids"):
            ended.add(row[side][-1] == END)
            assert row[side].count(END) == (row[side][-1] == END) and not control & {*row[side]}
    assert all(row[side][-1] == END for row in prepared(root, reward=True) for side in ("chosen_ids", "rejected_ids"))
    return ended


def test_what_was_sampled_is_what_is_learned_from(tmp_path: Path) -> None:
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    model.resize_token_embeddings(
        len(tokenizer)
    )  # what it samples is in the vocabulary, as of a model that has learned
    model.config.max_position_embeddings = 512
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert check(tmp_path, run(tmp_path, "./base"), tmp_path / "base") == {True, False}


@pytest.mark.shared
def test_a_story_goes_on_with_the_space_that_was_sampled(tmp_path: Path, shared_models: Path) -> None:
    base = shared_models / "stories260k-hf"
    assert False in check(tmp_path, run(tmp_path, str(base)), base)
