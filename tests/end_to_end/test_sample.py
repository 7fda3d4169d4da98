"""Trained stages answer prompts: as evaluation did, the same for the same seed, and only while they are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.small import Finished, Warm, copy_run, folder, prefopt, snapshot

pytestmark = pytest.mark.slow

SYSTEM = "you work for tiko. radio in blue, price 12 euros, delivery friday."
ASK = ("--system", SYSTEM, "--prompt", "what is the price?", "--prompt", "when do i get it?", "--max-new-tokens", "8")


def sampled(warm: Warm, *line: object) -> dict[str, Any]:
    done = warm.run(["sample", *map(str, line), "--json"])
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("stage", ["base", "sft", "dpo", "ppo"])
def test_each_trained_stage_answers_and_is_judged(quickstart: Finished, warm: Warm, stage: str) -> None:
    document = sampled(warm, quickstart.out, "--stage", stage, *ASK, "--n", 2, "--gold")
    assert document["stage"] == stage and document["base"] == "base"
    rows = document["samples"]
    assert [row["prompt"][1]["content"] for row in rows] == [ASK[3]] * 2 + [ASK[5]] * 2
    for row in rows:
        assert row["policy"] == stage and row["prompt"][0] == {"role": "system", "content": SYSTEM}
        assert 1 <= row["tokens"] <= 8 and (row["finished"] or row["tokens"] == 8)
        assert sum(row["gold_terms"].values()) == pytest.approx(row["gold"]) and row["violations"] == []


def test_the_seed_alone_decides_the_text(quickstart: Finished, warm: Warm) -> None:
    stage = quickstart.out / "stages" / "sft"
    before = snapshot(quickstart.out)
    default, named, other = (sampled(warm, stage, *ASK, *more) for more in ((), ("--seed", 17), ("--seed", 18)))
    assert default == named, "the recipe's seed is the default"
    assert other["samples"] != named["samples"]
    greedy = [sampled(warm, stage, *ASK, "--temperature", 0, "--seed", seed)["samples"] for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert snapshot(quickstart.out) == before, "nothing is written"


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_it_answers_as_evaluation_did(quickstart: Finished, warm: Warm, tmp_path: Path, stage: str) -> None:
    measured = folder(quickstart.out, "eval")
    assert measured is not None
    lines = (measured / "samples.jsonl").read_text().splitlines()
    expected = [row for row in map(json.loads, lines) if row["policy"] == stage]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in expected))
    artefact = folder(quickstart.out, stage)
    found = sampled(warm, artefact, "--file", prompts, "--max-new-tokens", 8, "--gold")["samples"]
    for row, was in zip(found, expected, strict=True):
        assert was.keys() - row.keys() == {"kl", "reward", "proxy"} and was["reward"] == was["gold"]
        assert row | {key: was[key] for key in ("kl", "reward", "proxy")} == was | {"gold_terms": row["gold_terms"]}


def test_lines_that_are_piped_in_are_answered_for_a_person(quickstart: Finished) -> None:
    line = ("sample", quickstart.out, "--stage", "dpo", "--gold", "--max-new-tokens", 8)
    done = prefopt(*line, input="what is the price?\n\nwhen do i get it?\n")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert [text for text in shown if text.startswith("user: ")] == [f"user: {ASK[3]}", f"user: {ASK[5]}"]
    assert sum(text.startswith("dpo: ") for text in shown) == 2 and done.stdout.count(" · gold ") == 2
    assert "2 of 2 prompts hold no facts of the embedded world" in done.stderr
    assert done.stderr.count("\n") == 2, "nothing of what libraries say"


def test_what_was_changed_is_not_loaded(quickstart: Finished, warm: Warm, out: Path) -> None:
    copy_run(quickstart.out, out)
    for stage, name in {"dpo": "adapter/adapter_model.safetensors", "base": "model/model.safetensors"}.items():
        artefact = folder(out, stage)
        assert artefact is not None
        weights = artefact / name
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    for stage, named in {"dpo": "adapter_model", "sft": "model.safetensors", "base": "model.safetensors"}.items():
        done = warm.run(["sample", str(out), "--stage", stage, *ASK])
        assert done.returncode == 5 and named in done.stderr and "has changed" in done.stderr


def test_an_adapter_is_not_hung_on_another_base(quickstart: Finished, warm: Warm, out: Path) -> None:
    copy_run(quickstart.out, out)
    recipe = out / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("dtype: float32", "dtype: bfloat16"))
    done = warm.run(["sample", str(out), "--stage", "sft", *ASK])
    assert done.returncode == 2 and "model.dtype float32 → bfloat16" in done.stderr
