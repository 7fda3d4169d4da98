"""The benchmark of PPO: what its table is made of, its order, and what prefopt's side trains and says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import ppo
from tests.benchmarks.against_trl import ppo_page
from tests.benchmarks.against_trl.ledger import read_result
from tests.benchmarks.against_trl.ppo_page import PREFOPT, TRL
from tests.tiny import tiny_llama, tiny_tokenizer

SHARED, ADAPTER, SLOW = PREFOPT


@pytest.fixture
def results() -> dict[str, dict[str, Any]]:
    speed = {SHARED: (3.0, 4.0, 2.0), ADAPTER: (2.0, 2.0, 2.0), SLOW: (1.5, 1.5, 1.5), TRL: (1.0, 2.0, 1.0)}
    shares = {"sampling_share": 0.2, "scoring_share": 0.1, "rollout_share": 0.4}
    found: dict[str, dict[str, Any]] = {
        f"speed/{turn + 1}/{side}": {"episodes_per_second": value, **shares}
        for side, values in speed.items()
        for turn, value in enumerate(values)
    }
    found |= {f"matmul/{turn}": {"flops_per_second": 8e9 + turn} for turn in range(4)}
    found |= {
        f"memory/{side}": {"peak_bytes": size * 2**20} for side, size in zip(speed, (400, 500, 400, 1000), strict=True)
    }
    return found | {f"flops/{side}": {"flops_per_episode": 2e9} for side in PREFOPT}


def test_speeds_are_compared_round_by_round(results: dict[str, dict[str, Any]]) -> None:
    assert ppo_page.ratio(results, SHARED, 3) == (3.0, 2.0, 3.0)
    assert ppo_page.limit_share(results, SHARED, 3) == pytest.approx(0.75, rel=1e-6)
    assert ppo_page.shares(results, ADAPTER, 3) == pytest.approx([0.2, 0.1, 0.1, 0.6])
    told = ppo_page.markdown(results, 3, "a machine", "2026-01-01")
    assert "| prefopt, `value: shared` | 3 (2–4) | 3.00 (2.00–3.00) | 400 | 0.40 |" in told
    assert "| prefopt, `value: adapter` | 2 | 75% | 20% | 10% | 10% | 60% |".replace("75%", "50%") in told


def test_sides_take_turns_and_every_step_has_a_name_of_its_own(tmp_path: Path) -> None:
    folders = ppo.Folders(tmp_path / "hh", tmp_path / "reward", tmp_path / "trl")
    found = list(ppo.steps(folders, 64, 2))
    assert len({step.key for step in found}) == len(found)
    timed = [step.key.partition("/")[0] for step in found[:11]]
    assert timed == ["matmul", *["speed"] * 4, "matmul", *["speed"] * 4, "matmul"]
    assert all((str(tmp_path / "trl") in step.environment.get("PYTHONPATH", "")) == (TRL in step.key) for step in found)


@pytest.mark.parametrize("more", [("--value", "shared"), ("--value", "adapter"), ("--value", "shared", "--flops")])
def test_prefopts_side_trains_the_recipe_of_the_frontier(tmp_path: Path, more: tuple[str, ...]) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": "the lamp is"}, {"prompt": "the chair"}] * 3
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = [str(tmp_path), "--reward", str(tmp_path / "reward"), "--episodes", "4", "--batch", "2", "--epochs", "2"]
    command = [sys.executable, "-m", "tests.benchmarks.against_trl.ppo_side", *words, "--response", "5"]
    subprocess.run([*command, "--write"], check=True, cwd=ppo.ROOT, capture_output=True)
    said = subprocess.run([*command, *more], check=True, cwd=ppo.ROOT, capture_output=True, text=True).stdout
    found = read_result(said)
    assert found["episodes"] == 4
    if "--flops" in more:
        assert found["flops_per_episode"] > 1e6
        return
    assert found["episodes_per_second"] > 0 and found["peak_bytes"] > 0
    assert 0 < found["sampling_share"] + found["scoring_share"] <= found["rollout_share"] < 1
