"""What a stage computed: tokens, and floating-point operations after the formulas of `prefopt.models.flops`.

Padding is left out: what is counted is what the data asks for, so that a stage costs the same however it is batched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefopt.data.token_rows import lengths_of
from prefopt.models.flops import FlopsModel, flops_model
from prefopt.models.generate import Sampled
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.distill import DistillTrainer
from prefopt.trainers.group import GroupTrainer
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.sequence_unlikelihood import SequenceUnlikelihoodTrainer


def mean_context(lengths: Sequence[int]) -> float:
    """Positions that a token attends to on average, in rows of these lengths, as dense kernels compute them."""
    return sum(length * length for length in lengths) / max(1, sum(lengths))


def completion_share(rows: Sequence[Mapping[str, Any]]) -> float:
    """Which part of the tokens of tokenised pairs belongs to completions; the prompt counts once."""
    prompts, *sides = (int(sum(lengths_of(rows, part))) for part in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return sum(sides) / max(1, prompts + sum(sides))


def training_cost(
    trainer: CheckpointedTrainer, *, full: bool = False, head: float = 1.0, reference: bool = False
) -> dict[str, float]:
    """Tokens and operations of training on rows, over all attempts.

    Args:
        trainer: After training.
        full: Whether all weights were trained, and not adapters.
        head: Which part of the tokens went through the language-model head.
        reference: Whether every row also went through a forward pass without adapters.
    """
    model = trainer.adapted_model() or trainer.accelerator.unwrap_model(trainer.model)
    flops = flops_model(model)
    once = sum(trainer.row_lengths())
    tokens, context = float(trainer.state.num_input_tokens_seen), trainer.seen_positions() / max(1, once)
    total = flops.train(tokens, context, full, _recomputes(trainer), head * tokens)
    if reference:
        total += replace(flops, adapters=0).forward(once, context, head * once)
    if isinstance(trainer, SequenceUnlikelihoodTrainer):
        total += own_answers_cost(trainer, flops)
    return {"tokens": tokens, "flops": total}


def own_answers_cost(trainer: SequenceUnlikelihoodTrainer, flops: FlopsModel) -> float:
    """Operations of sampling and unlearning a policy's own answers, over all attempts and ranks.

    Steps of earlier attempts, and other ranks, are taken to have said as much as those of this one.

    Args:
        trainer: After training.
        flops: Of its model.
    """
    plan, said = trainer.sequence_unlikelihood, trainer.own_answers
    if plan is None or not said.answers:
        return 0.0
    prompt, new = said.prompt_tokens / said.answers, said.new_tokens / said.answers
    sampled = said.answers * replace(flops, adapters=0).sample(prompt, new)
    head = said.unlearned_tokens * new / (prompt + new)
    again = flops.train(said.unlearned_tokens, prompt + new, False, _recomputes(trainer), head)
    steps = -(-int(trainer.state.global_step) // plan.every)
    return (sampled + again) * steps / said.steps * int(trainer.args.world_size)


def _recomputes(trainer: CheckpointedTrainer) -> bool:
    return bool(getattr(trainer.args, "activation_checkpointing", trainer.args.gradient_checkpointing))


def sampling_cost(flops: FlopsModel, prompt_ids: Sequence[Sequence[int]], new_tokens: Sequence[int]) -> float:
    """Operations of sampling completions with a cache and merged adapters."""
    plain = replace(flops, adapters=0)
    return sum(plain.sample(len(ids), new) for ids, new in zip(prompt_ids, new_tokens, strict=True))


def answering_cost(
    flops: FlopsModel, prompt_ids: Sequence[Sequence[int]], samples: Sequence[Sampled], forwards: int
) -> dict[str, float]:
    """Tokens and operations of sampling completions and of passing them through the model some times more."""
    new = [len(sample.ids) for sample in samples]
    rows = [len(ids) + count for ids, count in zip(prompt_ids, new, strict=True)]
    again = forwards * flops.forward(sum(rows), mean_context(rows))
    return {"tokens": float(sum(new)), "flops": sampling_cost(flops, prompt_ids, new) + again}


def _rollouts(
    trainer: PPOTrainer | GroupTrainer, latest: Sequence[Mapping[str, Any]]
) -> tuple[Any, FlopsModel, float, int, float, float]:
    """Options, operations of the model, tokens, episodes, and of an episode the tokens and those of its completion."""
    model = trainer.adapted_model()
    assert model is not None
    args, tokens = trainer.args, float(trainer.state.num_input_tokens_seen)
    episodes = trainer.state.global_step // args.steps_per_rollout * args.rollout_batch_size
    row = tokens / max(1, episodes)
    new = min(row, sum(sample["tokens"] for sample in latest) / max(1, len(latest)))
    return args, flops_model(model), tokens, episodes, row, new


def ppo_cost(trainer: PPOTrainer, *, reward_passes: int) -> dict[str, float]:
    """Tokens and operations of PPO: sampling, scoring, the passes over a rollout, and the update.

    Every episode is sampled once, passed through policy and reference (and value, where that is another adapter),
    scored by the reward model where there is one, as its beginnings are if that is asked for, and trained on
    `num_ppo_epochs` times. How much of an episode is completion is taken from the last rollout.

    Args:
        trainer: After training.
        reward_passes: Forward passes of a reward model on the same base that gave an episode its reward; 0 for none.
    """
    args, flops, tokens, episodes, row, new = _rollouts(trainer, trainer.watch.latest)
    head = episodes * new
    towers = 1 if trainer.model.shared else 2
    sampled = episodes * replace(flops, adapters=0).sample(row - new, new)
    passes = (1 + towers) * flops.forward(tokens, row, head)
    # Beginnings are evenly spaced, so the mean one has the prompt and half of the completion.
    beginnings = min(args.score_prefixes, new) * flops.forward(episodes * (row - new / 2), row - new / 2, 0.0)
    scored = reward_passes * (flops.forward(tokens, row, 0.0) + beginnings)
    update = args.num_ppo_epochs * towers * flops.train(tokens, row, False, False, head)
    return {"tokens": tokens, "flops": sampled + passes + scored + update}


def group_cost(trainer: GroupTrainer, *, reward_passes: int) -> dict[str, float]:
    """Tokens and operations of grpo and rloo: as those of PPO, without a value.

    The pass of the policy over a new rollout is counted for rloo, and for grpo where a rollout gives several steps or
    passes compute in half precision.

    Args:
        trainer: After training.
        reward_passes: Forward passes of a reward model on the same base that gave an episode its reward; 0 for none.
    """
    args, flops, tokens, episodes, row, new = _rollouts(trainer, trainer.latest)
    head = episodes * new
    sampled = episodes * replace(flops, adapters=0).sample(row - new, new)
    passes = (1 + trainer.looks_again) * flops.forward(tokens, row, head)
    scored = reward_passes * flops.forward(tokens, row, 0.0)
    update = args.num_iterations * flops.train(tokens, row, False, _recomputes(trainer), head)
    return {"tokens": tokens, "flops": sampled + passes + scored + update}


def kto_cost(trainer: CheckpointedTrainer, *, estimates_kl: bool) -> dict[str, float]:
    """Tokens and operations of kto: training on rows, the reference, and both on mismatched completions.

    Args:
        trainer: After training.
        estimates_kl: Whether there are such completions.
    """
    found = training_cost(trainer)
    model = trainer.adapted_model()
    assert model is not None
    context = trainer.seen_positions() / max(1, sum(trainer.row_lengths()))
    tokens = found["tokens"]
    passes = 3 if estimates_kl else 1
    return {"tokens": tokens, "flops": found["flops"] + passes * flops_model(model).forward(tokens, context, tokens)}


def distill_cost(trainer: DistillTrainer, *, sampled: float) -> dict[str, float]:
    """Tokens and operations of distillation: the student's training, its teacher's passes, and what was sampled.

    The teacher's prompts are as much longer as those of the rows are.

    Args:
        trainer: After training.
        sampled: Operations of the teacher's own answers. Those of the student on policy count as passes of a teacher.
    """
    once = max(1, sum(trainer.row_lengths()))
    answers = sum(len(row.get("completion_ids", ())) or trainer.args.max_new_tokens for row in trainer.train_dataset)
    found = training_cost(trainer, head=min(1.0, answers / once))
    model = trainer.adapted_model()
    assert model is not None
    longer = sum(len(row["teacher_prompt_ids"]) - len(row["prompt_ids"]) for row in trainer.train_dataset)
    tokens = found["tokens"] * max(0.0, 1 + longer / once) * (trainer.asks_teacher + trainer.args.on_policy)
    context = trainer.seen_positions() / once
    again = replace(flops_model(model), adapters=0).forward(
        tokens, context, min(tokens, found["tokens"] * answers / once)
    )
    return {"tokens": found["tokens"], "flops": found["flops"] + again + sampled}


def total(costs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Several costs together."""
    names = dict.fromkeys(name for cost in costs for name in cost)
    return {name: sum(cost.get(name, 0.0) for cost in costs) for name in names}
