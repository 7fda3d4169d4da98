"""Open the policies a stage names, all on one base: to evaluate them, or to collect their completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.evaluation.policy import PolicyBench
from prefopt.models.generate import SamplingOptions
from prefopt.models.roles import load_frozen
from prefopt.models.soft_prompt import SoftPrompt, read_soft_prompt
from prefopt.pipeline.base_model import OpenBase, PolicyFolder, load_weights
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.schema import SamplingSpec
from prefopt.trainers.callbacks import KEPT_ADAPTERS


@dataclass(frozen=True)
class OpenPolicies:
    """Several policies as adapters on one base.

    Attributes:
        bench: The base with every policy's adapter on it.
        adapters: What the bench calls each policy, in the order asked for; None where it is the base itself.
    """

    bench: PolicyBench
    adapters: Mapping[str, str | None]


@dataclass(frozen=True)
class KeptAdapter:
    """An adapter that a stage kept while it trained.

    Attributes:
        policy: The stage.
        step: Optimiser steps it had.
        folder: Where it is.
    """

    policy: str
    step: int
    folder: Path


def kept_adapters(names: Sequence[str], inputs: Inputs) -> dict[str, KeptAdapter]:
    """What stages kept with `keep_adapters`, as `STAGE/step-N`; the last is the stage's own adapter and left out."""
    found: dict[str, KeptAdapter] = {}
    for name in names:
        folder = inputs[name].directory / KEPT_ADAPTERS if name in inputs else None
        steps = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("step-*")) if folder else []
        for step in steps[:-1]:
            assert folder is not None
            found[f"{name}/step-{step}"] = KeptAdapter(name, step, folder / f"step-{step}")
    return found


def open_policies(
    folders: Mapping[str, PolicyFolder], context: StageContext, base: OpenBase, batch_size: int
) -> OpenPolicies:
    """Load the base once and hang the policies on it, frozen.

    Args:
        folders: Of each policy.
        context: The stage's context.
        base: The recipe's base.
        batch_size: Rows of one forward pass.
    """
    # Not the stages' names: a stage may be called what PEFT's modules are called, or have a dot in its name.
    hung = {f"policy{i}": folder.adapter for i, folder in enumerate(folders.values()) if folder.adapter is not None}
    soft_prompts: dict[str, SoftPrompt] = {}
    adapters: dict[str, str | None] = {}
    for number, (name, folder) in enumerate(folders.items()):
        adapter = f"policy{number}" if folder.adapter is not None else None
        if folder.soft_prompt is None:
            adapters[name] = adapter
            continue
        adapters[name] = f"soft{number}"
        soft_prompts[f"soft{number}"] = SoftPrompt(adapter, read_soft_prompt(folder.soft_prompt))
    weights = load_weights(base, context)
    model = load_frozen(weights, hung) if hung else weights.eval()
    return OpenPolicies(PolicyBench(model, base.tokenizer, batch_size, soft_prompts), adapters)


def sampling_options(spec: SamplingSpec, seed: int) -> SamplingOptions:
    """How a stage samples, from its spec."""
    return SamplingOptions(
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        batch_size=spec.per_device_eval_batch_size,
        seed=seed,
    )
