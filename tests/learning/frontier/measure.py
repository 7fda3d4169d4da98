"""Measure policies on the held-out prompts: reward, and KL from the base by exact next-token distributions.

usage: python -m tests.learning.frontier.measure PROMPTS ADAPTER [ADAPTER …]

All policies get the same random numbers, so that a difference between two is not one of luck. Prints a JSON line for
each adapter: `adapter`, `reward`, `kl`, their standard errors, `length`; `blocks`, the means over each of some blocks
of openings, by which errors of measuring are told; and under `unseen` means and blocks of the openings that nobody
trains on, and how many those are.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.evaluation.policy import PolicyBench
from prefopt.models.generate import SamplingOptions, sample
from prefopt.models.roles import adapter_active, load_frozen
from tests.learning.frontier import world

EACH = 2
SEED = 99
BATCH = 256
BLOCKS = 32


def uniforms(rows: int) -> Tensor:
    """The random number of each token."""
    return torch.rand(rows, world.NEW_TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))


def measured(folder: Path, adapters: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One row for each adapter, or one for the base where no adapters are given."""
    model, tokenizer = world.load()
    named = {f"policy{number}": path for number, path in enumerate(adapters)}
    bench = PolicyBench(load_frozen(model, named) if named else model, tokenizer, BATCH)
    prompts = [ids for text in world.read_prompts(folder, "held_out") for ids in [tokenizer(text)["input_ids"]] * EACH]
    options, judge = SamplingOptions(max_new_tokens=world.NEW_TOKENS, batch_size=BATCH), world.scorer()
    numbers, unseen = uniforms(len(prompts)), torch.tensor(world.unseen(folder))
    for name in named or (None,):
        with adapter_active(bench.model, name):
            samples = sample(bench.model, tokenizer, prompts, options, uniforms=numbers)
        rewards = of_prompts([score.value for score in judge.score([()] * len(samples), [s.text for s in samples])])
        kl = of_prompts(bench.along(name, None, prompts, samples).kl)
        length = {"length": sum(len(each.ids) for each in samples) / len(samples)}
        adapter = {"adapter": str(named[name]) if name else "base"}
        yield adapter | length | summary(rewards, kl, unseen)


def of_prompts(values: Sequence[float]) -> Tensor:
    """Means [P] over the completions of a prompt."""
    return torch.tensor(values, dtype=torch.float64).view(-1, EACH).mean(1)


def summary(rewards: Tensor, kl: Tensor, unseen: Tensor) -> dict[str, Any]:
    """Means, their standard errors over prompts, and the means of blocks.

    Args:
        rewards: [P], of prompts.
        kl: [P], nats.
        unseen: [P], whether nobody trains on the prompt.
    """
    found: dict[str, Any] = {}
    for name, values in (("reward", rewards), ("kl", kl)):
        found |= {name: float(values.mean()), f"{name}_se": standard_error(values)}
    found["blocks"] = {"reward": blocks(rewards), "kl": blocks(kl)}
    if unseen.any():
        means = {"reward": float(rewards[unseen].mean()), "kl": float(kl[unseen].mean()), "count": int(unseen.sum())}
        found["unseen"] = means | {"blocks": {"reward": blocks(rewards[unseen]), "kl": blocks(kl[unseen])}}
    return found


def blocks(values: Tensor) -> list[float]:
    """Means of at most `BLOCKS` parts, as large as each other but for one prompt; prompts are in random order."""
    return [round(float(part.mean()), 4) for part in values.tensor_split(min(BLOCKS, len(values)))]


def standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


def main() -> None:
    for row in measured(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
