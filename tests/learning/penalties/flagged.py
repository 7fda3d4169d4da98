"""How likely flagged words are, and how well everything else is foreseen, on stories that nothing was trained on.

usage: python -m tests.learning.penalties.flagged STORIES [ADAPTER …]

Prints a JSON line for the base and each adapter: `adapter`; `token`, the mean probability of the tokens of flagged
words; `first`, that of their first tokens; `word`, the mean probability of whole flagged words; and `nll`, the mean
negative log-likelihood of all other tokens, in nats.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from prefopt.losses.logprobs import token_logps
from prefopt.models.roles import adapter_active, load_frozen
from prefopt.recipe.load import load
from prefopt.recipe.schema import SFTSpec
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.flags import WeightedCost, flag, samples_of
from tests.learning.penalties import stories

RECIPE = Path(__file__).with_name("stories.yaml")
BATCH = 50


def summary(texts: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> dict[str, float]:
    """Means over the tokens of texts.

    Args:
        texts: Of each text the log-probability of its tokens, in nats, and whether each is of a flagged word; flagged
            tokens in a row are one word.

    Raises:
        ValueError: When nothing is flagged, or everything.
    """
    words: list[list[float]] = []
    clean: list[float] = []
    for logps, flagged in texts:
        for logp, before, now in zip(logps, (False, *flagged), flagged, strict=False):
            if now and not before:
                words.append([])
            (words[-1] if now else clean).append(logp)
    if not words or not clean:
        raise ValueError("flagged words and others are needed")

    def probability(of: Sequence[float]) -> float:
        return sum(map(math.exp, of)) / len(of)

    return {
        "token": probability([logp for word in words for logp in word]),
        "first": probability([word[0] for word in words]),
        "word": probability([sum(word) for word in words]),
        "words": float(len(words)),
        "nll": -sum(clean) / len(clean),
    }


@torch.no_grad()
def measured(folder: Path, adapters: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One row for the base, and one for each adapter."""
    model, tokenizer = stories.load()
    rows = [json.loads(line) for line in (folder / "unseen.jsonl").read_text("utf-8").splitlines()]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    texts = [tokenizer(row["completion"], add_special_tokens=False)["input_ids"] for row in rows]
    unlearn = load(RECIPE).recipe.stages["unlearn"]
    assert isinstance(unlearn, SFTSpec)
    costs = [WeightedCost(rule_cost(spec), 1.0) for spec in unlearn.unlikelihood]
    flags, _ = flag(samples_of(prompts, texts, tokenizer), costs)
    named = {f"policy{number}": path for number, path in enumerate(adapters)}
    hung = load_frozen(model, named) if named else model
    for name in (None, *named):
        with adapter_active(hung, name):
            logps = [one for start in range(0, len(rows), BATCH)
                     for one in _logps(hung, prompts[start : start + BATCH], texts[start : start + BATCH])]  # fmt: skip
        found = summary([(each, [not i for i in of.imitation]) for each, of in zip(logps, flags, strict=True)])
        yield {"adapter": str(named[name]) if name else "base"} | found


def _logps(model: Any, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[list[float]]:
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    logps = token_logps(model(input_ids=ids, attention_mask=mask).logits[:, :-1], ids[:, 1:])
    return [
        logps[place, len(prompt) - 1 : len(row) - 1].tolist()
        for place, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]


def main() -> None:
    for row in measured(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
