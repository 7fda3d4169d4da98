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
from tests.benchmarks.against_trl.peers import MODEL, PEER
from tests.benchmarks.against_trl.ppo_page import PREFOPT, TRL
from tests.tiny import tiny_llama, tiny_tokenizer

SHARED, ADAPTER, SLOW = PREFOPT


@pytest.fixture
def results() -> dict[str, dict[str, Any]]:
    speed = {SHARED: (3.0, 4.0, 2.0), ADAPTER: (2.0, 2.0, 2.0), SLOW: (1.5, 1.5, 1.5), TRL: (1.0, 2.0, 1.0)}
    shares = {"sampling_share": 0.2, "scoring_share": 0.1, "rollout_share": 0.4}
    found: dict[str, dict[str, Any]] = {
        f"speed/{turn + 1}/{side}": {"episodes_per_second": value, "peak_bytes": int(value * 2**29), **shares}
        for side, values in speed.items()
        for turn, value in enumerate(values)
    }
    found |= {f"matmul/{turn}": {"flops_per_second": 8e9 + turn, "device": "a GPU"} for turn in range(4)}
    found |= {
        f"memory/{side}": {"peak_bytes": size * 2**20, "cuda_peak_bytes": size * 2**19}
        for side, size in zip(speed, (400, 500, 400, 1000), strict=True)
    }
    return found | {f"flops/{side}": {"flops_per_episode": 2e9} for side in PREFOPT}


def test_speeds_are_compared_round_by_round(results: dict[str, dict[str, Any]]) -> None:
    assert ppo_page.ratio(results, SHARED, 3) == (3.0, 2.0, 3.0)
    assert ppo_page.limit_share(results, SHARED, 3) == pytest.approx((0.75, 0.5, 1.0), rel=1e-6)
    assert ppo_page.shares(results, ADAPTER, 3) == pytest.approx([0.2, 0.1, 0.1, 0.6])
    told = ppo_page.markdown(results, 3, "a machine", "2026-01-01")
    assert "| prefopt, `value: shared` | 3 (2–4) | 3.00 (2.00–3.00) | 1,536 | 3.00 | 400 | 0.40 |" in told
    assert "| prefopt, `value: shared` | 2 | 75% (50%–100%) | 20% | 10% | 10% | 60% |" in told
    assert "| prefopt, `value: adapter` | 2 | 50% (50%–50%) | 20% | 10% | 10% | 60% |" in told
    assert "\nThe limit: 8 (8–8) GFLOP a second.\n" in told
    assert "above imports" in told and SLOW in told and "a GPU" not in told
    results[f"speed/2/{SHARED}"] = {"failed": "out of memory"}
    told = ppo_page.markdown(results, 3, "a machine", "2026-01-01")
    assert "| prefopt, `value: shared` | out of memory | – | out of memory | – | 400 | 0.40 |" in told


def test_a_device_is_named_and_weighed_and_has_no_choice_of_library(results: dict[str, dict[str, Any]]) -> None:
    told = ppo_page.markdown(results, 3, "a machine", "2026-01-01", cuda=True)
    assert "Machine: a GPU; a machine; 2026-01-01." in told and "| peak memory on the device, MiB |" in told
    assert "above imports" not in told and SLOW not in told
    assert "| prefopt, `value: shared` | 3 (2–4) | 3.00 (2.00–3.00) | 200 | 0.40 |" in told


@pytest.mark.parametrize("failing", [TRL, SHARED])
def test_a_side_without_memory_is_said_and_not_compared(results: dict[str, dict[str, Any]], failing: str) -> None:
    for key in [f"speed/2/{failing}", f"memory/{failing}", *([f"flops/{failing}"] if failing != TRL else [])]:
        results[key] = {"failed": "out of memory"}
    assert ppo_page.ratio(results, SHARED, 3) is None
    lines = ppo_page.markdown(results, 3, "a machine", "2026-01-01", cuda=True).splitlines()
    of_side = [line for line in lines if line.startswith(f"| {failing} |")]
    assert of_side[0] == f"| {failing} | out of memory | – | out of memory | – |"
    if failing == SHARED:
        assert of_side[1] == f"| {SHARED} | – | – | – | – | – | – |"
        assert ppo_page.limit_share(results, SHARED, 3) is None
    else:
        assert "| prefopt, `value: shared` | 3 (2–4) | – | 200 | – |" in lines


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "peers"
    folder.mkdir()
    for name in (MODEL, PEER, ppo.PEER):
        (folder / name).write_text("raise SystemExit('not to be run')\n")
    monkeypatch.setenv("PREFOPT_BENCH", str(folder))
    return folder


@pytest.mark.parametrize("cuda", [False, True])
def test_the_dry_run_prints_what_it_would_run(peers: Path, capsys: pytest.CaptureFixture[str], cuda: bool) -> None:
    file = peers.parent / "bench" / "ppo.jsonl"
    words = ["--dry-run", "--rounds", "2", "--results", str(file), *(["--cuda"] if cuda else [])]
    assert ppo.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    ours = [line for line in lines if ".ppo_side" in line]
    of_prefopt = len(PREFOPT) - cuda
    assert len(ours) == of_prefopt * (2 + 1 + 1)  # rounds, memory, operations
    assert any("PREFOPT_PRODUCTS=torch" in line for line in ours) != cuda
    assert sum(".ppo_trl_side" in line and f"trl-{ppo.TRL_RELEASE}" in line for line in lines) == 2 + 1
    assert not file.parent.exists()


@pytest.mark.usefixtures("peers")
def test_without_a_device_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ppo, "has_cuda", lambda: False)
    assert ppo.main(["--cuda", "--results", str(tmp_path / "bench" / "ppo.jsonl")]) == 3
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "bench").exists()


def test_what_is_carried_is_not_installed_again(peers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(words: list[str], more: dict[str, str], *, cuda: bool) -> str:
        ran.append(" ".join(words))
        Path(words[words.index("--reward") + 1] if "--reward" in words else words[-1]).mkdir(parents=True)
        return ""

    monkeypatch.setattr(ppo, "run", run)
    folders = ppo.Folders(tmp_path / "hh", tmp_path / "reward", tmp_path / "trl")
    folders.release.mkdir()
    ppo.prepare(folders, peers, cuda=True)
    assert len(ran) == 2 and not any("pip" in words for words in ran)
    assert folders.data.is_dir() and folders.reward.is_dir()


def test_sides_take_turns_and_every_step_has_a_name_of_its_own(tmp_path: Path) -> None:
    folders = ppo.Folders(tmp_path / "hh", tmp_path / "reward", tmp_path / "trl")
    found = list(ppo.steps(folders, 64, 2, cuda=False))
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
