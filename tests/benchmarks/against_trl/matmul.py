"""Measures how fast this machine multiplies matrices of a model's sizes, and prints one JSON line.

usage: python -m tests.benchmarks.against_trl.matmul DIR [--bf16]

DIR holds `model/config.json`. On CUDA where there is a device, else on all of torch's threads; in float32 without
--bf16. `flops_per_second` is the median rate of the size that is fastest, by the library that prefopt's stages multiply
with; `rates` has the medians of all sizes, and `torch_flops_per_second` is the rate of torch's own choice.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from prefopt.models.products import use_quick_products
from tests.benchmarks.against_trl.clock import seconds

TOKENS = 2048
REPEATS, WARMUP = 15, 3


def median_rate(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """Operations a second of [rows, inner] times [inner, columns]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    times = []
    for _ in range(WARMUP + REPEATS):
        start = seconds()
        torch.mm(left, right)
        times.append(seconds() - start)
    return 2 * rows * inner * columns / statistics.median(times[WARMUP:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=Path)
    parser.add_argument("--bf16", action="store_true")
    a = parser.parse_args()
    config = json.loads((a.dir / "model" / "config.json").read_text(encoding="utf-8"))
    hidden, between, vocabulary = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    dtype = torch.bfloat16 if a.bf16 else torch.float32
    sizes = [(hidden, hidden), (hidden, between), (between, hidden), (hidden, vocabulary)]

    def rates_of_sizes() -> dict[str, float]:
        return {f"{TOKENS} x {k} x {n}": median_rate(TOKENS, k, n, dtype) for k, n in sizes}

    of_torch = rates_of_sizes()
    rates = rates_of_sizes() if use_quick_products() else of_torch
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    told = {"flops_per_second": max(rates.values()), "torch_flops_per_second": max(of_torch.values()), "rates": rates}
    print(json.dumps({**told, "threads": torch.get_num_threads(), "device": device}))


if __name__ == "__main__":
    main()
