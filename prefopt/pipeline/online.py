"""What stages that sample from their policy share: the prompts that are answered, and what scores the answers."""

from __future__ import annotations

from typing import Any

from prefopt.data.load import load_prompts
from prefopt.errors import DataError
from prefopt.models.reward_artefact import read_artefact
from prefopt.pipeline.adapters import Rows
from prefopt.pipeline.base_model import OpenBase, data_of, data_policy
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.schema import OnlineSpec
from prefopt.recipe.scorers import PPORewardSpec

SAMPLES_TRACKED = 100


def prompt_rows(spec: OnlineSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> Rows:
    """Read and tokenise the prompts of a stage: rows with `prompt` and `prompt_ids`.

    Raises:
        DataError: When there are none, or too many cannot be used.
    """
    data = data_of(inputs, context)
    loaded = load_prompts(spec.prompts, data, context.recipe.seed)
    overlong, max_dropped = data_policy(spec.prompts, data)
    encoder = base.encoder(spec.max_length, overlong)
    rows: list[dict[str, Any]] = []
    for prompt in loaded.train:
        ids = encoder.encode_prompt(prompt, spec.max_new_tokens)
        if ids is not None:
            rows.append({"prompt": prompt, "prompt_ids": ids})
    encoder.check_drop_share(max_dropped)
    if not rows:
        raise DataError(f"stage {context.stage}: no prompts to train on in {', '.join(spec.prompts)}")
    details = {"data": loaded.report.to_json(), "encoding": {"chat_template": base.template, **dict(encoder.counts)}}
    return Rows(rows, (), details)


def reward_passes(spec: OnlineSpec, inputs: Inputs) -> int:
    """Forward passes of reward models on the stage's own base that give an episode its reward."""
    named = [part.model for part in spec.reward.parts if part.model in inputs]
    return sum(len(read_artefact(inputs[name].directory).adapters) for name in named if name is not None)


def scaling(reward: PPORewardSpec) -> dict[str, Any]:
    """How scores become rewards, in the names of `prefopt.trainers.reward_scaling`."""
    return {
        "normalise": reward.normalise,
        "reference_samples": reward.reference_samples,
        "reward_bound": None if reward.bound == "none" else reward.bound,
        "reward_slope": reward.slope,
        "reward_clip": reward.clip,
        "total_clip": reward.total_clip,
        "missing_eos_penalty": reward.missing_eos_penalty,
        "missing_eos_score": reward.missing_eos_score,
    }
