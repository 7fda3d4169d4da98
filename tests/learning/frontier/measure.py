"""Measure policies on the held-out prompts: reward, and KL from the base by exact next-token distributions.

usage: python -m tests.learning.frontier.measure PROMPTS ADAPTER [ADAPTER …]

All policies get the same random numbers, so that a difference between two is not one of luck. Prints a JSON line for
each adapter: `adapter`, `reward`, `kl`, their standard errors, `length`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.evaluation.policy import PolicyBench
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.roles import adapter_active, load_frozen
from tests.learning.frontier import world

EACH = 2
SEED = 99
BATCH = 256


def uniforms(rows: int) -> Tensor:
    """The random number of each token."""
    return torch.rand(rows, world.NEW_TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))


def measured(folder: Path, adapters: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One row for each adapter, and first one for the base where no adapters are given."""
    model, tokenizer = world.load()
    named = {f"policy{number}": path for number, path in enumerate(adapters)}
    bench = PolicyBench(load_frozen(model, named) if named else model, tokenizer, BATCH)
    prompts = [ids for text in world.read_prompts(folder, "held_out") for ids in [tokenizer(text)["input_ids"]] * EACH]
    options, judge = SamplingOptions(max_new_tokens=world.NEW_TOKENS, batch_size=BATCH), world.scorer()
    numbers = uniforms(len(prompts))
    for name in named or (None,):
        with adapter_active(bench.model, name):
            samples = sample(bench.model, tokenizer, prompts, options, uniforms=numbers)
        kl = bench.along(name, None, prompts, samples).kl
        rewards = [score.value for score in judge.score([()] * len(samples), [each.text for each in samples])]
        yield {"adapter": str(named[name]) if name else "base"} | summary(rewards, kl, samples)


def summary(rewards: Sequence[float], kl: Sequence[float], samples: Sequence[Sampled]) -> dict[str, float]:
    """Means over completions, and their standard errors over prompts."""
    found: dict[str, float] = {"length": sum(len(each.ids) for each in samples) / len(samples)}
    for name, values in (("reward", rewards), ("kl", kl)):
        of_prompts = torch.tensor(values, dtype=torch.float64).view(-1, EACH).mean(1)
        found |= {name: float(of_prompts.mean()), f"{name}_se": float(of_prompts.std()) / len(of_prompts) ** 0.5}
    return found


def main() -> None:
    for row in measured(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
