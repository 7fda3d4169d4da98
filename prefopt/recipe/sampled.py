"""Rules for the kinds of stages: what their keys must be to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from prefopt.recipe.distill_rules import DISTILL_RULES
from prefopt.recipe.options.suites import POLICY_SUITES, REWARD_SUITES
from prefopt.recipe.parts import Fault, Part
from prefopt.recipe.references import names_in, scorers_of
from prefopt.recipe.reward_rules import REWARD_RULES

Rule = Callable[[Part], Iterator[Fault]]


def rules_of(kind: str) -> tuple[Rule, ...]:
    """The rules for a kind of stage."""
    return _RULES.get(kind, ())


def online_steps(part: Part) -> int:
    """Optimiser steps of a stage that samples from its policy."""
    rollouts = -(-part.get("total_episodes") // part.get("rollout_batch_size"))
    uses = part.get("num_ppo_epochs" if part.has("num_ppo_epochs") else "num_iterations")
    return int(rollouts * uses * part.get("num_mini_batches"))


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
    elif rollout % int(part.get("samples_per_prompt")):
        message = f"a rollout of {rollout} episodes has no whole number of prompts with so many samples each"
        yield Fault("samples_per_prompt", message, f"write a number that divides {rollout}")
    elif rollout // parts > rows and rollout // parts % rows:
        message = f"minibatches of {rollout // parts} episodes cannot be cut into passes of {rows}"
        yield Fault("per_device_train_batch_size", message, f"write a number that divides {rollout // parts}")


def _pull(part: Part) -> Iterator[Fault]:
    """Without a pull to the reference the policy finds what the reward is wrong about."""
    if _inner(part.get("kl"), "coefficient") == 0:
        message = "without a pull to the reference the policy drifts to whatever the reward is wrong about"
        yield Fault("kl.coefficient", message, wrong=False)


def _second_opinion(part: Part) -> Iterator[Fault]:
    """A judge is somebody else, and is there where it is asked."""
    judge, reward = ({name for _, name in scorers_of(part.get(key))} for key in ("judge", "reward"))
    for name in sorted(judge & reward):
        yield Fault("judge", f"'{name}' is what is trained on, and vouches for nothing", "name another scorer")
    if _inner(part.get("guards"), "keep") == "judge" and not part.written("judge"):
        yield Fault("guards.keep", "the stage has no 'judge' to choose a policy by", "write 'judge', or `keep: bound`")


def _pairs(part: Part) -> Iterator[Fault]:
    """There are completions enough for the pairs."""
    if part.changed("on_violation") and not part.get("costs"):
        yield Fault("on_violation", "nothing is said to violate", "write 'costs', a list of costs")
    each, pairs = int(part.get("samples_per_prompt")), int(part.get("pairs_per_prompt"))
    policies = len(names_in(part.get("policies")))
    if not policies:
        return
    if each * policies < 2:
        yield Fault("samples_per_prompt", "a pair needs two completions of a prompt", "write 2 or more")
    elif 2 * pairs > each * policies:
        message = f"{pairs} pairs need {2 * pairs} completions of a prompt, and there are {each * policies}"
        yield Fault("pairs_per_prompt", message, "raise 'samples_per_prompt'")


def _suites(part: Part) -> Iterator[Fault]:
    """What is to be measured can be."""
    policies, reward, data = (part.written(key) for key in ("policies", "reward", "data"))
    wanted = part.get("suites") or ()
    of_policies = [name for name in wanted if name in POLICY_SUITES]
    of_reward = [name for name in wanted if name in REWARD_SUITES]
    if not policies and (of_policies or not (reward and data)):
        what = f"'{of_policies[0]}' measures policies, and" if of_policies else "without a reward and pairs to examine"
        yield Fault("policies", f"{what} the stage names none", "name the stages whose models answer")
    if of_reward and not (reward and data):
        message = f"'{of_reward[0]}' examines a reward on pairs, and the stage lacks {'data' if reward else 'a reward'}"
        yield Fault("suites", message, "write 'reward' and 'data'")
    if "best_of_n" in wanted and not part.given("best_of"):
        yield Fault("suites", "'best_of_n' needs the number of answers", "write `best_of: 64`")
    if {"win_rate", "overoptimisation"} & set(wanted) and not reward:
        yield Fault("suites", "without a reward no policy is better than another", "write 'reward'")
    if part.given("checkpoints") and wanted and "overoptimisation" not in wanted:
        yield Fault(
            "checkpoints", "checkpoints are measured for 'overoptimisation', which 'suites' leaves out", wrong=False
        )


def _costs(part: Part) -> Iterator[Fault]:
    """Costs are measured on what policies answer."""
    if not part.written("costs"):
        return
    if not part.written("policies"):
        yield Fault("costs", "costs are measured on answers, and the stage names no policies", "add 'policies'")
    elif part.get("suites") and "violations" not in part.get("suites"):
        yield Fault("costs", "costs are measured for 'violations', which 'suites' leaves out", wrong=False)
    listed = part.get("costs")
    for cost in listed if isinstance(listed, list | tuple) else ():
        if _inner(cost, "cost") == "ensemble_std":
            remedy = "its disagreement is in the metrics of the ppo stage"
            yield Fault("costs", "'ensemble_std' is measured where a reward is trained on", remedy)


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
    "distill": DISTILL_RULES,
    "evaluate": (_suites, _costs, _headroom, _greedy),
    "grpo": (_batches, _pull),
    "ppo": (_batches, _pull, _second_opinion),
    "reward": REWARD_RULES,
    "rloo": (_batches, _pull),
}
