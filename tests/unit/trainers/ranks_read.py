"""Reads what `ranks_script` wrote, and says how far two runs are apart."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


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
        if name not in OF_BATCHES
    )
