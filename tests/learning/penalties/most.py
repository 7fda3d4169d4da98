"""What of the gain any policy could keep without favourite words: the limit of experiment (b), by importance sampling.

No policy has more reward at its KL than p(y) ∝ base(y) exp(tilt · reward(y)); and none that violates as seldom as the
target has more than p(y) ∝ base(y) exp(tilt · reward(y) - weight · violates(y)), with the weight that leads to that
(Csiszár 1975: each is the projection of the base on what the constraints allow). Both are estimated from the base's own
completions; where few of them count, the estimate is not to be trusted.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prefopt.models.generate import SamplingOptions, sample
from prefopt.recipe.options.costs import BannedCost
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.costs.sample import Sample
from prefopt.rewards.scorers import LexiconScorer
from tests.learning.frontier.limit import reweighted
from tests.learning.frontier.world import read_prompts
from tests.learning.penalties import plan, stories
from tests.learning.penalties.reading import lexicon_file
from tests.learning.results import Row

PROMPTS, EACH, NEW_TOKENS = 128, 1024, 24
TILTS = (0.2, 0.4, 0.6, 0.8, 1.0)
HEAVY = 64.0
"""A weight with which nothing violates any more."""


def measured(folder: Path) -> list[Row]:
    """A row for each tilt: `free` and `held`, each with reward, KL, violations and effective completions; and `kept`.

    Args:
        folder: Of `stories.write`.
    """
    model, tokenizer = stories.load()
    judge, banned = LexiconScorer(lexicon_file()), rule_cost(BannedCost(cost="banned", words=plan.WORDS))
    rewards, violated = [], []
    for seed, opening in enumerate(read_prompts(folder, "held_out")[:PROMPTS]):
        ids = tokenizer(opening)["input_ids"]
        options = SamplingOptions(max_new_tokens=NEW_TOKENS, batch_size=EACH, seed=seed)
        texts = [each.text for each in sample(model, tokenizer, [ids] * EACH, options)]
        rewards.append([score.value for score in judge.score([()] * EACH, texts)])
        violated.append([cost.value > 0 for cost in banned.measure([Sample((), text) for text in texts])])
    return rows(torch.tensor(rewards, dtype=torch.float64), torch.tensor(violated, dtype=torch.float64))


def rows(rewards: Tensor, violated: Tensor) -> list[Row]:
    """As `measured`, of completions' rewards and violations [prompts, completions]."""
    base = float(rewards.mean())
    found = []
    for tilt in TILTS:
        free = limit(rewards, violated, tilt, 0.0)
        held = limit(rewards, violated, tilt, weight_for(rewards, violated, tilt))
        kept = (held["reward"] - base) / (free["reward"] - base)
        found.append({"tilt": tilt, "free": free, "held": held, "kept": kept})
    return found


def limit(rewards: Tensor, violated: Tensor, tilt: float, weight: float) -> dict[str, float]:
    """The tilted model, of which violations cost `weight`."""
    weights, kl = reweighted(tilt * rewards - weight * violated, torch.zeros_like(rewards))
    return {
        "reward": float((weights * rewards).sum(1).mean()),
        "kl": float(kl.mean()),
        "violations": float((weights * violated).sum(1).mean()),
        "effective_completions": float((1 / weights.square().sum(1)).mean()),
    }


def weight_for(rewards: Tensor, violated: Tensor, tilt: float) -> float:
    """The weight with which as many violate as the target allows; 0 where no more do without it."""
    low, high = 0.0, HEAVY
    if limit(rewards, violated, tilt, low)["violations"] <= plan.TARGET:
        return low
    for _ in range(50):
        middle = (low + high) / 2
        if limit(rewards, violated, tilt, middle)["violations"] > plan.TARGET:
            low = middle
        else:
            high = middle
    return high
