"""Open the policies a stage names, all on one base: to evaluate them, or to collect their completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefopt.evaluation.policy import PolicyBench
from prefopt.models.generate import SamplingOptions
from prefopt.models.roles import load_frozen
from prefopt.pipeline.base_model import OpenBase, adapter_of, load_weights
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.schema import SamplingSpec


@dataclass(frozen=True)
class OpenPolicies:
    """Several policies as adapters on one base.

    Attributes:
        bench: The base with every policy's adapter on it.
        adapters: Each policy's adapter on the base, in the order asked for; None where the policy is the base itself.
    """

    bench: PolicyBench
    adapters: Mapping[str, str | None]


def open_policies(
    names: Sequence[str], inputs: Inputs, context: StageContext, base: OpenBase, batch_size: int
) -> OpenPolicies:
    """Load the base once and hang the policies on it, frozen.

    Args:
        names: Stages, or `base`.
        inputs: Finished input stages, the named among them.
        context: The stage's context.
        base: The recipe's base.
        batch_size: Rows of one forward pass.
    """
    folders = {name: folder for name in names if (folder := adapter_of(name, inputs)) is not None}
    # Not the stages' names: a stage may be called what PEFT's modules are called, or have a dot in its name.
    adapters = {name: f"policy{index}" if name in folders else None for index, name in enumerate(names)}
    weights = load_weights(base, context)
    hung = {adapter: folders[name] for name, adapter in adapters.items() if adapter is not None}
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
