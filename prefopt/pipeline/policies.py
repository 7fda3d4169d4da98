"""Open the policies a stage names, all on one base: to evaluate them, or to collect their completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.evaluation.policy import PolicyBench
from prefopt.models.generate import SamplingOptions
from prefopt.models.roles import load_frozen
from prefopt.pipeline.base_model import OpenBase, load_weights
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.schema import SamplingSpec
from prefopt.trainers.callbacks import KEPT_ADAPTERS


@dataclass(frozen=True)
class OpenPolicies:
    """Several policies as adapters on one base.

    Attributes:
        bench: The base with every policy's adapter on it.
        adapters: Each policy's adapter on the base, in the order asked for; None where the policy is the base itself.
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
    folders: Mapping[str, Path | None], context: StageContext, base: OpenBase, batch_size: int
) -> OpenPolicies:
    """Load the base once and hang the policies on it, frozen.

    Args:
        folders: Adapter of each policy; None for the base itself.
        context: The stage's context.
        base: The recipe's base.
        batch_size: Rows of one forward pass.
    """
    # Not the stages' names: a stage may be called what PEFT's modules are called, or have a dot in its name.
    adapters = {name: None if folder is None else f"policy{i}" for i, (name, folder) in enumerate(folders.items())}
    weights = load_weights(base, context)
    hung = {
        adapter: folder
        for adapter, folder in zip(adapters.values(), folders.values(), strict=True)
        if adapter and folder
    }
    model = load_frozen(weights, hung) if hung else weights.eval()
    return OpenPolicies(PolicyBench(model, base.tokenizer, batch_size), adapters)


def sampling_options(spec: SamplingSpec, seed: int) -> SamplingOptions:
    """How a stage samples, from its spec."""
    return SamplingOptions(
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        batch_size=spec.per_device_eval_batch_size,
        seed=seed,
    )
