"""The limit of the frontier: the base tilted by the reward, p(y) ∝ base(y) exp(tilt · reward(y)) for every prompt.

usage: python -m tests.learning.frontier.limit PROMPTS [ADAPTER …] [--samples 256] [--part 1] [--parts 1]

No policy has more reward at its KL (arXiv 2402.00742, section 2; Csiszár 1975). Reward, normaliser and KL of the tilted
model are estimated from completions of the base and of the policies given, a mixture that covers high rewards better
than the base alone, weighted by base / mixture (Veach and Guibas 1995, balance heuristic). Prints a JSON line for each
tilt: `tilt`, sums and sums of squares over a part of the held-out prompts (`prompts` of them) of `reward`, `kl`,
`effective_samples` of a prompt, and whether those are `few`. Then one for the best of n of the base's completions:
`n`, `reward`, `kl`. `joined` makes means and standard errors of all parts. Where effective samples are few, the
estimate is too low.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prefopt.evaluation.policy import PolicyBench
from prefopt.models.generate import SamplingOptions, sample
from prefopt.models.roles import adapter_active, load_frozen
from prefopt.stats.curves import best_of_n_kl, best_of_n_mean
from tests.learning.frontier import world
from tests.learning.results import Row

TILTS = [round(0.05 * number, 2) for number in range(31)]
BEST_OF = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
BATCH = 1000
FEW = 10
"""Effective samples, below which what is said of a prompt is not to be trusted."""


def tilted(rewards: Tensor, log_weights: Tensor, tilt: float) -> tuple[Tensor, Tensor, Tensor]:
    """Reward, KL and effective samples of the tilted model.

    Args:
        rewards: [P, N] of prompts' completions.
        log_weights: [P, N], log of base(y) / the distribution that y was drawn from.
        tilt: Of the reward.

    Returns:
        [P] each.
    """
    weights, kl = reweighted(tilt * rewards, log_weights)
    return (weights * rewards).sum(1), kl, 1 / weights.square().sum(1)


def reweighted(exponents: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Completions' shares in p(y) ∝ base(y) exp(exponent(y)), and the KL of p from the base.

    Args:
        exponents: [P, N] of prompts' completions.
        log_weights: [P, N], log of base(y) / the distribution that y was drawn from.

    Returns:
        [P, N], which sum up to 1, and [P] in nats.
    """
    logits = log_weights + exponents
    weights = logits.softmax(1)
    # E[w] = 1 under the mixture, but dividing by the sum of weights varies less.
    log_normaliser = logits.logsumexp(1) - log_weights.logsumexp(1)
    return weights, (weights * exponents).sum(1) - log_normaliser


def drawn(
    bench: PolicyBench, adapters: list[str | None], ids: list[int], each: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Rewards and log-weights [N] of a prompt's completions, `each` from every policy."""
    judge, found = world.scorer(), []
    for number, adapter in enumerate(adapters):
        options = SamplingOptions(max_new_tokens=world.NEW_TOKENS, batch_size=BATCH, seed=seed * 101 + number)
        with adapter_active(bench.model, adapter):
            found += sample(bench.model, bench.tokenizer, [ids] * each, options)
    scores = judge.score([()] * len(found), [answer.text for answer in found])
    rewards = torch.tensor([score.value for score in scores], dtype=torch.float64)
    if len(adapters) == 1:
        return rewards, torch.zeros_like(rewards)
    completions = [answer.ids for answer in found]
    logps = torch.tensor(
        [bench.completion_logps(adapter, [ids] * len(found), completions) for adapter in adapters], dtype=torch.float64
    )
    return rewards, logps[0] - (logps.logsumexp(0) - math.log(len(adapters)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="PROMPTS", type=Path)
    parser.add_argument("adapters", type=Path, nargs="*")
    parser.add_argument("--samples", type=int, default=256, help="of a prompt and a policy; 256")
    parser.add_argument("--part", type=int, default=1)
    parser.add_argument("--parts", type=int, default=1)
    a = parser.parse_args()
    model, tokenizer = world.load()
    named: dict[str, Path] = {f"policy{number}": path for number, path in enumerate(a.adapters)}
    bench = PolicyBench(load_frozen(model, named) if named else model, tokenizer, BATCH)
    rows = [
        drawn(bench, [None, *named], tokenizer(text)["input_ids"], a.samples, seed)
        for seed, text in enumerate(world.read_prompts(a.folder, "held_out"))
        if seed % a.parts == a.part - 1
    ]
    rewards, log_weights = (torch.stack(column) for column in zip(*rows, strict=True))
    for tilt in TILTS:
        reward, kl, effective = tilted(rewards, log_weights, tilt)
        columns = {"reward": reward, "kl": kl, "effective_samples": effective, "few": (effective < FEW).double()}
        print(json.dumps({"tilt": tilt} | totals(columns)))
    of_base = rewards[:, : a.samples].tolist()
    for n in (n for n in BEST_OF if n <= a.samples // 2):
        best = torch.tensor([best_of_n_mean(values, values, n) for values in of_base], dtype=torch.float64)
        print(json.dumps({"n": n, "kl": best_of_n_kl(n)} | totals({"reward": best})))


def totals(columns: dict[str, Tensor]) -> Row:
    """Sums over a part's prompts, from which `joined` makes means."""
    found: Row = {"prompts": len(next(iter(columns.values())))}
    for name, values in columns.items():
        found[f"{name}_sum"], found[f"{name}_squares"] = float(values.sum()), float(values.square().sum())
    return found


def joined(parts: Sequence[Sequence[Row]]) -> list[Row]:
    """Means over all prompts, and their standard errors `…_se`, from the lines that each part printed."""
    rows = []
    for lines in zip(*parts, strict=True):
        count = sum(line["prompts"] for line in lines)
        row = {name: lines[0][name] for name in ("tilt", "n", "kl") if name in lines[0]}
        for name in ("reward", "kl", "effective_samples", "few"):
            if f"{name}_sum" in lines[0]:
                mean = sum(line[f"{name}_sum"] for line in lines) / count
                squares = sum(line[f"{name}_squares"] for line in lines) / count
                variance = max(0.0, squares - mean**2) * count / (count - 1)
                row |= {name: mean, f"{name}_se": math.sqrt(variance / count)}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
