"""How long rule costs take beside sampling the completions that they judge, in processor time of one thread.

usage: python -m tests.learning.penalties.speed

The model is the smallest there is, with 260 thousand parameters: with any other the share is smaller.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from prefopt.models.generate import SamplingOptions, sample
from prefopt.models.token_offsets import token_offsets
from prefopt.records import Message, Prompt
from prefopt.rewards.costs.registry import RULES, rule_cost
from prefopt.rewards.costs.sample import Cost, Sample
from prefopt.rewards.shaper import lazy_offsets
from tests.benchmarks.costs import SPECS
from tests.learning.penalties import stories

COMPLETIONS, TOKENS, RUNS = 512, 128, 5
JUDGED: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in SPECS}
JUDGED |= {"length, repetition and banned": ("length", "repetition", "banned"), "all kinds": tuple(RULES)}
ASKED: Prompt = (Message("user", "Once upon a time"),)


def timed(work: Callable[[], object]) -> float:
    """Processor time of a call, median over runs, in seconds."""
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def measured() -> dict[str, float]:
    """Seconds of sampling and of costs, and their ratios."""
    torch.set_num_threads(1)
    model, tokenizer = stories.load()
    prompts = [tokenizer("Once upon a time")["input_ids"]] * COMPLETIONS
    options = SamplingOptions(max_new_tokens=TOKENS, batch_size=COMPLETIONS, seed=1)
    said = sample(model, tokenizer, prompts, options)

    def samples() -> list[Sample]:  # anew each time: a sample remembers what it was asked
        where = partial(token_offsets, tokenizer)
        return [
            Sample(ASKED, each.text, each.ids, each.finished, offsets=lazy_offsets(where, each.ids, each.text))
            for each in said
        ]

    def judge(costs: list[Cost]) -> None:
        made = samples()
        for cost in costs:
            cost.measure(made)

    sampling = timed(lambda: sample(model, tokenizer, prompts, options))
    found = {"completions": float(COMPLETIONS), "tokens": float(TOKENS), "sampling_seconds": sampling}
    for name, kinds in JUDGED.items():
        seconds = timed(lambda kinds=kinds: judge([rule_cost(SPECS[kind]) for kind in kinds]))  # type: ignore[misc]
        found |= {f"{name}_seconds": seconds, f"{name}_share": seconds / sampling}
    return found


if __name__ == "__main__":
    print(json.dumps(measured()))
