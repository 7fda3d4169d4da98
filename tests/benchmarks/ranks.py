"""How near two ranks come to one process with the joined batch: prints the table of docs/distributed.md."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch

from tests.unit.trainers.on_ranks import difference, launch, logged_difference, logs, weights
from tests.unit.trainers.ranks_script import run

METHODS = {"sft": "sft", "reward": "reward", "dpo": "dpo", "ppo": "ppo", "shared_ppo": "ppo, `value: shared`",
           "pretrain": "pretrain"}  # fmt: skip


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        one.mkdir()
        done = launch(two, *METHODS, "bypassed")
        if done.returncode:
            raise SystemExit(done.stderr)
        print("| trainer | losses, relative | weights | weights, of the largest | weights, of what training changed |")
        print("|---|---|---|---|---|")
        for method, name in METHODS.items():
            run(one, method)
            row(name, one, two, method, method)
        row("dpo, forward around the wrapper", one, two, "dpo", "bypassed")


def row(name: str, one: Path, two: Path, single: str, double: str) -> None:
    a, b, start = weights(one, single), weights(two, double), weights(one, single, start=True)
    gap = {key: b[key] - a[key] for key in a}
    change = {key: a[key] - start[key] for key in a}
    losses = (logs(one, single), logs(two, double))
    kept = [[{k: v for k, v in entry.items() if "loss" in k} for entry in log] for log in losses]
    largest = max(float(tensor.abs().max()) for tensor in a.values())
    numbers = (logged_difference(*kept), difference(b, a), difference(b, a) / largest, norm(gap) / norm(change))
    print(f"| {name} | {' | '.join(f'{number:.1e}' for number in numbers)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
