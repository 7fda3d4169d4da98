"""Rules for stages that sample completions: what their sizes must be to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from prefopt.recipe.parts import Fault, Part
from prefopt.recipe.references import names_in

Rule = Callable[[Part], Iterator[Fault]]


def rules_of(kind: str) -> tuple[Rule, ...]:
    """The rules for a kind of stage."""
    return _RULES.get(kind, ())


def ppo_steps(part: Part) -> int:
    """Optimiser steps of a ppo stage."""
    rollouts = part.get("total_episodes") // part.get("rollout_batch_size")
    return int(rollouts * part.get("num_ppo_epochs") * part.get("num_mini_batches"))


def _batches(part: Part) -> Iterator[Fault]:
    """A rollout is cut into equal minibatches, and those into equal passes."""
    rollout, parts, rows = (
        int(part.get(key)) for key in ("rollout_batch_size", "num_mini_batches", "per_device_train_batch_size")
    )
    if part.get("total_episodes") < rollout:
        message = f"{part.get('total_episodes'):g} episodes are less than one rollout of {rollout}"
        yield Fault("total_episodes", message, "raise it, or lower 'rollout_batch_size'")
    if rollout % parts:
        message = f"{rollout} episodes cannot be cut into {parts} equal minibatches"
        yield Fault("rollout_batch_size", message, f"write a multiple of {parts}, or change 'num_mini_batches'")
    elif rollout // parts > rows and rollout // parts % rows:
        message = f"minibatches of {rollout // parts} episodes cannot be cut into passes of {rows}"
        yield Fault("per_device_train_batch_size", message, f"write a number that divides {rollout // parts}")


def _pull(part: Part) -> Iterator[Fault]:
    """Without a pull to the reference the policy finds what the reward is wrong about."""
    if _inner(part.get("kl"), "coefficient") == 0:
        message = "without a pull to the reference the policy drifts to whatever the reward is wrong about"
        yield Fault("kl.coefficient", message, wrong=False)


def _pairs(part: Part) -> Iterator[Fault]:
    """There are completions enough for the pairs."""
    each, pairs = int(part.get("samples_per_prompt")), int(part.get("pairs_per_prompt"))
    policies = len(names_in(part.get("policies")))
    if not policies:
        return
    if each * policies < 2:
        yield Fault("samples_per_prompt", "a pair needs two completions of a prompt", "write 2 or more")
    elif 2 * pairs > each * policies:
        message = f"{pairs} pairs need {2 * pairs} completions of a prompt, and there are {each * policies}"
        yield Fault("pairs_per_prompt", message, "raise 'samples_per_prompt'")


def _headroom(part: Part) -> Iterator[Fault]:
    """The best of many is the best by a reward."""
    if part.given("best_of") and not part.written("reward"):
        yield Fault("best_of", "the best completions are chosen by a reward, and the stage has none", "add 'reward'")


def _greedy(part: Part) -> Iterator[Fault]:
    """Greedy completions of a prompt are all the same."""
    repeated = [key for key in ("samples_per_prompt", "best_of") if part.has(key) and (part.get(key) or 1) > 1]
    if part.get("temperature") == 0 and repeated:
        message = f"greedy completions of a prompt are all the same, so '{repeated[0]}' above 1 adds nothing"
        yield Fault("temperature", message, wrong=False)


def _inner(value: Any, key: str) -> Any:
    """A key of a mapping that stands in a stage, or of its default."""
    if isinstance(value, BaseModel):
        return getattr(value, key)
    return value.get(key) if isinstance(value, dict) else None


_RULES: dict[str, tuple[Rule, ...]] = {
    "collect": (_pairs, _greedy),
    "evaluate": (_headroom, _greedy),
    "ppo": (_batches, _pull),
}
