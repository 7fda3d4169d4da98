"""Costs of sampled answers: what they take off the judge's reward before answers are paired and labelled."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.models.token_offsets import token_offsets
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.loss_costs import open_loss_costs
from prefopt.recipe.options.loss_costs import AnySampledCost
from prefopt.records import Prompt
from prefopt.rewards.costs.sample import Measured, Sample, costs_to_json
from prefopt.rewards.flags import WeightedCost
from prefopt.rewards.shaper import lazy_offsets
from prefopt.store.ledger import StoredSample

_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Shaped:
    """What an answer's reward is made of.

    Attributes:
        reward: What it is paired and labelled by.
        terms: `score`, what the judge gave, and what each cost takes off; they add up to `reward`.
        measured: By the name of the cost.
        violated: Names of the costs above their threshold.
    """

    reward: float
    terms: Mapping[str, float]
    measured: Mapping[str, Measured]
    violated: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Keys of a line of `samples.jsonl`."""
        return {"shaped_reward": self.reward, "terms": dict(self.terms), **costs_to_json(self.measured)}


def shaped_answers(
    specs: Sequence[AnySampledCost],
    answers: Sequence[tuple[Prompt, StoredSample, float]],
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    context: StageContext,
) -> list[Shaped]:
    """Take costs off the judge's rewards: r - u Σ λ c, with u the deviation of the rewards of all answers.

    Args:
        specs: Costs with their weights λ.
        answers: Prompt, completion and the judge's reward of N answers.
        tokenizer: Of the policies; tokens are those of the completion's text.
        inputs: Finished input stages.
        context: The stage's context.
    """
    costs = open_loss_costs(specs, inputs, context)
    context.log(f"{len(answers)} answers are measured: {', '.join(one.cost.label for one in costs)}")
    samples = [answered(prompt, sample, tokenizer) for prompt, sample, _ in answers]
    rewards = [reward for _, _, reward in answers]
    deviation = statistics.pstdev(rewards)
    unit = deviation if deviation > _SMALLEST_DEVIATION else 1.0
    measured = [one.cost.measure(samples) for one in costs]
    return [_shaped(reward, unit, costs, [each[place] for each in measured]) for place, reward in enumerate(rewards)]


def cost_metrics(shaped: Sequence[Shaped], dropped: int) -> dict[str, float]:
    """Averages over all answers by the names of `prefopt.tracking.metrics`; nothing where no cost is measured."""
    if not shaped:
        return {}
    count = len(shaped)
    found = {
        "collect/shaped_reward": sum(each.reward for each in shaped) / count,
        "collect/dropped_rate": dropped / count,
    }
    for name in shaped[0].measured:
        found[f"cost/{name}"] = sum(each.measured[name].value for each in shaped) / count
        found[f"violation_rate/{name}"] = sum(name in each.violated for each in shaped) / count
    return found


def answered(prompt: Prompt, sample: StoredSample, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """An answer from the ledger, as costs look at it; its tokens are those of its text."""
    text = sample.completion
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if sample.finished:
        ids.append(tokenizer.eos_token_id)

    def offsets(tokens: Sequence[int], said: str) -> Sequence[int]:
        return token_offsets(tokenizer, tokens, said)

    found = tuple(ids)
    return Sample(prompt, text, found, sample.finished, offsets=lazy_offsets(offsets, found, text))


def _shaped(reward: float, unit: float, costs: Sequence[WeightedCost], measured: Sequence[Measured]) -> Shaped:
    labels = [one.cost.label for one in costs]
    taken = {label: -unit * one.weight * each.value for label, one, each in zip(labels, costs, measured, strict=True)}
    violated = tuple(
        label for label, one, each in zip(labels, costs, measured, strict=True) if each.value > one.cost.threshold
    )
    by_name = dict(zip(labels, measured, strict=True))
    return Shaped(reward + sum(taken.values()), {"score": reward, **taken}, by_name, violated)
