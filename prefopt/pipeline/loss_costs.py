"""Costs of a stage's training rows: which tokens are flagged, of which completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.models.token_offsets import token_offsets
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.costs import open_cost
from prefopt.recipe.options.loss_costs import AnyLossCost
from prefopt.records import Message, Prompt
from prefopt.rewards.costs.sample import Sample
from prefopt.rewards.flags import Flags, WeightedCost, flag
from prefopt.rewards.shaper import lazy_offsets


def open_loss_costs(specs: Sequence[AnyLossCost], inputs: Inputs, context: StageContext) -> list[WeightedCost]:
    """Open costs with their weights; raises as `prefopt.pipeline.costs.open_cost`."""
    return [WeightedCost(open_cost(spec, inputs, context), spec.weight) for spec in specs]


def samples_of(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[Sample]:
    """Tokenised completions as costs look at them: decoded, as those that a policy samples are.

    Args:
        prompts: Token ids of N prompts; costs see each as one message, chat template and all.
        completions: Token ids of N completions, the end token included.
        tokenizer: That made them.
    """

    def offsets(ids: Sequence[int], text: str) -> Sequence[int]:
        return token_offsets(tokenizer, ids, text)

    found = []
    for prompt, ids in zip(prompts, completions, strict=True):
        asked: Prompt = (Message("user", tokenizer.decode(list(prompt), skip_special_tokens=True)),)
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        found.append(Sample(asked, text, tuple(ids), offsets=lazy_offsets(offsets, tuple(ids), text)))
    return found


def flagged_rows(
    rows: Sequence[Mapping[str, Any]], costs: Sequence[WeightedCost], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, Any]], dict[str, object]]:
    """Demonstrations with what costs say of their tokens.

    Args:
        rows: With `prompt_ids` and `completion_ids`.
        costs: What flags.
        tokenizer: That made them.

    Returns:
        Rows with `imitation` and `unlikelihood` of the completion's tokens, and what was flagged, for the manifest.
    """
    samples = samples_of([r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows], tokenizer)
    flags, counts = flag(samples, costs)
    return [{**row, **_columns(each)} for row, each in zip(rows, flags, strict=True)], counts.to_json()


def _columns(flags: Flags) -> dict[str, list[float]]:
    return flags._asdict()
