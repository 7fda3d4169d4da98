"""Measure policies on the held-out prompts: reward, and KL from the base by exact next-token distributions.

usage: python -m tests.learning.frontier.measure PROMPTS ADAPTER [ADAPTER …]

All policies get the same random numbers, so that a difference between two is not one of luck. Prints a JSON line for
each adapter: `adapter`, `reward`, `kl`, their standard errors, `gain_se`, that of the reward less the base's, `length`;
and under `unseen` the means over the openings that nobody trains on, and how many those are.
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
    of_base: Tensor | None = None
    for name in (None, *named):
        with adapter_active(bench.model, name):
            samples = sample(bench.model, tokenizer, prompts, options, uniforms=numbers)
        rewards = of_prompts([score.value for score in judge.score([()] * len(samples), [s.text for s in samples])])
        of_base = rewards if of_base is None else of_base
        if name or not named:
            kl = of_prompts(bench.along(name, None, prompts, samples).kl)
            length = {"length": sum(len(each.ids) for each in samples) / len(samples)}
            adapter = {"adapter": str(named[name]) if name else "base"}
            yield adapter | length | summary(rewards, kl, of_base, unseen)


def of_prompts(values: Sequence[float]) -> Tensor:
    """Means [P] over the completions of a prompt."""
    return torch.tensor(values, dtype=torch.float64).view(-1, EACH).mean(1)


def summary(rewards: Tensor, kl: Tensor, of_base: Tensor, unseen: Tensor) -> dict[str, Any]:
    """Means, and their standard errors over prompts.

    Args:
        rewards: [P], of prompts.
        kl: [P], nats.
        of_base: [P], the base's rewards.
        unseen: [P], whether nobody trains on the prompt.
    """
    found: dict[str, Any] = {"gain_se": standard_error(rewards - of_base)}
    for name, values in (("reward", rewards), ("kl", kl)):
        found |= {name: float(values.mean()), f"{name}_se": standard_error(values)}
    if unseen.any():
        means = {"reward": float(rewards[unseen].mean()), "kl": float(kl[unseen].mean())}
        found["unseen"] = means | {"count": int(unseen.sum())}
    return found


def standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


def main() -> None:
    for row in measured(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
