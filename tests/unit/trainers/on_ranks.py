"""Runs `ranks_script.py` on several ranks, reads what they wrote, and compares it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("ranks_script.py")
ROOT = Path(__file__).parents[3]
ON_A_CPU = ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml"


def launch(folder: Path, *what: str, count: int = 2) -> subprocess.CompletedProcess[str]:
    """Train with these trainers on several ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ON_A_CPU)]
    command += ["--num_processes", str(count), "--main_process_port", "0", str(SCRIPT), str(folder), *what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def weights(folder: Path, what: str, number: int = 0, *, start: bool = False) -> dict[str, torch.Tensor]:
    """What a rank had trained in the end, or had at the start."""
    return load_file(folder / f"{what}.{number}{'.start' if start else ''}.safetensors")


def logs(folder: Path, what: str, number: int = 0) -> list[dict[str, float]]:
    """What a rank logged."""
    found: list[dict[str, float]] = json.loads((folder / f"{what}.{number}.json").read_text())
    return found


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# TRL's means over batches, gathered: those of another cut into batches.
OF_BATCHES = ("eval_entropy", "eval_mean_token_accuracy", "num_tokens", "eval_num_tokens")


def logged_difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """Largest difference between what was logged, relative to the larger number, or to 1 where both are smaller."""
    assert [row.keys() for row in a] == [row.keys() for row in b]
    return max(
        abs(x[name] - y[name]) / max(abs(x[name]), abs(y[name]), 1.0)
        for x, y in zip(a, b, strict=True)
        for name in x
        if name not in OF_BATCHES and not (name == "dpo/accuracy" and tied(x) and tied(y))
    )


def tied(row: dict[str, float]) -> bool:
    """Whether policy and reference are still one, so that rounding decides which completion is preferred."""
    return abs(row["dpo/margin"]) < 1e-6
