"""The two sides of the benchmark against TRL: the same rows, the same weights, the same losses, a fair clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from prefopt.models.batches import PairCollator, padded_pairs
from tests.benchmarks.against_trl import random_pairs
from tests.benchmarks.against_trl.clock import Clock, counted_share
from tests.benchmarks.against_trl.ledger import read_result
from tests.benchmarks.against_trl.peers import ROOT
from tests.benchmarks.against_trl.plan import HERE
from tests.benchmarks.against_trl.prefopt_side import CPU_ATTENTION
from tests.benchmarks.against_trl.process_memory import PeakMemory
from tests.benchmarks.against_trl.start import Recorder, read_rows, start_from
from tests.tiny import random_rows, tiny_policy

TINY: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": True,
}  # fmt: skip


def test_the_clock_counts_steps_after_warm_up_and_the_pass_of_the_reference() -> None:
    clock = Clock(iter([5.0, 9.0, 10.0, 20.0, 23.0, 29.0, 40.0, 61.0]).__next__)
    clock.on_prediction_step()  # of an evaluation before
    clock.begin()  # 9
    clock.on_prediction_step()  # 10
    clock.on_prediction_step()  # 20: the last of the reference
    clock.on_train_begin()  # 23: policy and reference were compared meanwhile
    for _ in range(3):
        clock.on_step_end()  # 29, 40, 61
    assert (clock.reference, clock.steps) == (20 - 9, 61 - 40)


def test_where_no_batch_of_the_reference_is_seen_all_before_the_first_step_counts() -> None:
    clock = Clock(iter([1.0, 8.0]).__next__)
    clock.begin()
    clock.on_train_begin()
    assert clock.reference == 7


def test_the_share_of_counted_pairs_is_by_tokens() -> None:
    rows = [{"prompt_ids": [1] * n, "chosen_ids": [1], "rejected_ids": [1] * 3} for n in (1, 1, 1, 3, 8)]
    assert counted_share(rows, 2) == 20 / (20 + 6 + 6 + 6 + 10)


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_the_recorder_gives_back_the_rows_of_batches(method: str, tmp_path: Path) -> None:
    rows, model = random_rows(6), tiny_policy(adapter="default")
    recorder = Recorder()
    whole = [
        {"prompt": row["prompt_ids"], **{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES}}
        for row in rows
    ]
    trainer = SimpleNamespace(model=model, train_dataset=whole, processing_class=lambda ids: {"input_ids": ids})
    for start in (0, 3):
        batch = padded_pairs(PairCollator()(rows[start : start + 3]))
        if method == "reward":
            del batch["completion_mask"]
        assert recorder.step(trainer, model, batch) == 0
    recorder.write(tmp_path / "start")
    assert read_rows(tmp_path / "start") == rows


SIDES = ("chosen", "rejected")


def test_prefopt_starts_with_the_weights_of_trl(tmp_path: Path) -> None:
    recorder, theirs = Recorder(), tiny_policy(adapter="default", seed=3)
    recorder.step(SimpleNamespace(model=theirs), theirs, padded_pairs(PairCollator()(random_rows(2))))
    recorder.write(tmp_path / "start")
    ours = tiny_policy(seed=4)
    start_from(tmp_path / "start", ours, "policy", None)
    mine = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(mine[name.replace(".default.", ".policy.")], parameter)
    with pytest.raises(SystemExit, match="other weights"):
        start_from(tmp_path / "start", ours, "policy", torch.nn.Linear(32, 1))


@pytest.mark.parametrize(
    ("config", "torch_dtype"),
    [(LlamaConfig(**TINY, dtype="float32"), torch.float32), (Qwen2Config(**TINY, dtype="bfloat16"), torch.bfloat16)],
    ids=["llama", "qwen2"],
)
def test_random_pairs_have_exactly_the_tokens_that_are_asked_for(
    config: Any, torch_dtype: torch.dtype, tmp_path: Path
) -> None:
    random_pairs.write(tmp_path, config, tokens=40, pairs=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        assert len(prompt) == 30
        for side in SIDES:
            ids = tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"]
            assert len(ids) == 40 and ids[:30] == prompt and ids[-1] == 2
            assert min(ids[:-1]) > 2 and max(ids) < config.vocab_size
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == torch_dtype and type(model.config) is type(config)


def test_the_shapes_are_those_that_the_page_says() -> None:
    shapes = random_pairs.shapes()
    assert shapes["llama-32k"].vocab_size == 32_000
    qwen = shapes["qwen2-0.5b"]
    assert (qwen.num_hidden_layers, qwen.hidden_size, qwen.vocab_size) == (24, 896, 151_936)


def test_attention_on_a_cpu_is_counted() -> None:
    """Two products forward, five backward: one of them recomputes the scores."""
    query, key, value = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        scaled_dot_product_attention(query, key, value).sum().backward()
    assert counter.get_total_flops() == 7 * (2 * 2 * 3 * 16 * 16 * 8)


def test_the_peak_of_memory_is_that_since_the_start() -> None:
    """In a process of its own, as the sides run: where much was freed before, an allocator hands that out again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        told = fresh.submit(_peak_of_64_mib).result()
    assert 60 * 2**20 < told["peak_bytes"] < 90 * 2**20


def _peak_of_64_mib() -> dict[str, Any]:
    before = torch.ones(2**22)  # 16 MiB, of before
    memory = PeakMemory()
    torch.ones(2**24).sum()  # 64 MiB
    assert before.sum() == 2**22  # is there still
    return memory.report()


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_both_sides_train_the_same(method: str, shared_bench: Path, tmp_path: Path) -> None:
    """In processes as the benchmark runs them: from one start, the same pairs, the same losses."""
    random_pairs.write(tmp_path / "data", LlamaConfig(**TINY, dtype="float32"), tokens=24, pairs=8)
    words = [method, str(tmp_path / "data"), "--pairs", "4", "--batch", "2", "--max-length", "32"]
    start = ["--start", str(tmp_path / "start")]
    precompute = ["--precompute"] if method == "dpo" else []

    def side(module: str, *more: str) -> dict[str, Any]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFOPT_BENCH": str(shared_bench)}
        command = [sys.executable, "-m", f"{HERE}.{module}", *more, *words]
        environment |= {"TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        return read_result(done.stdout)

    side("trl_side", "--record", str(tmp_path / "start"))
    assert len(read_rows(tmp_path / "start")) == 8
    theirs, ours = side("trl_side", *start, *precompute), side("prefopt_side", *start)
    for name in ("first_loss", "last_loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    assert ours["last_loss"] != ours["first_loss"]
    assert ours["pairs"] == theirs["pairs"] == 4
    for found in (ours, theirs) if method == "dpo" else ():
        assert found["reference_seconds"] > 0 and found["reference_share"] == 0.5
        assert found["pairs_per_second"] < 4 / found["seconds"]
