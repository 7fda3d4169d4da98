"""The frame of `grpo` and `rloo`: the same stage but for the trainer and its own options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from peft import PeftModel

from prefopt.models.roles import POLICY, save_adapter
from prefopt.pipeline.adapters import Job, Opened, open_trained_policy
from prefopt.pipeline.base_model import OpenBase, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import group_cost
from prefopt.pipeline.costs import open_penalty
from prefopt.pipeline.online import SAMPLES_TRACKED, prompt_rows, reward_passes, scaling
from prefopt.pipeline.scoring import open_scorer
from prefopt.pipeline.training import final_metrics, kept_outputs, train
from prefopt.recipe.schema import GroupSpec
from prefopt.store.files import write_json_lines
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.group import GroupTrainer

# Names that a stage and its configuration share.
_SAME = (
    "total_episodes",
    "rollout_batch_size",
    "num_mini_batches",
    "num_iterations",
    "temperature",
    "mask_truncated_completions",
)


@dataclass(frozen=True)
class GroupMethod:
    """What differs between the methods.

    Attributes:
        config: Of the trainer.
        trainer: The trainer.
        own: Names that its stage and its configuration share, and no other method has.
    """

    config: type[Any]
    trainer: Callable[..., GroupTrainer]
    own: tuple[str, ...]


def run_group_stage(spec: GroupSpec, inputs: Inputs, context: StageContext, method: GroupMethod) -> StageResult:
    """Train an adapter to get rewards; writes it, `tokenizer/`, and the last rollout's `samples.jsonl`."""
    stage = open_group_stage(spec, inputs, context, method)
    model = stage.load()

    def build(callbacks: list[Any]) -> GroupTrainer:
        return cast(GroupTrainer, stage.build(spec, model, callbacks))

    trained = train(build, spec, context, samples=lambda trainer: trainer.latest[:SAMPLES_TRACKED])
    if context.rank > 0:
        return StageResult({}, [])
    save_adapter(model, POLICY, context.directory / "adapter", stage.name)
    stage.tokenizer.save_pretrained(context.directory / "tokenizer")
    samples = [{"policy": context.stage, **row} for row in trained.latest]
    write_json_lines(context.directory / "samples.jsonl", samples, sort_keys=True)
    return StageResult(
        metrics=final_metrics(context),
        outputs=["adapter", "tokenizer", "samples.jsonl", *kept_outputs(spec)],
        details=stage.rows.details,
        cost=group_cost(trained, reward_passes=reward_passes(spec, inputs)),
    )


def open_group_stage(spec: GroupSpec, inputs: Inputs, context: StageContext, method: GroupMethod) -> Opened:
    """The stage, ready to be trained; its rows are prompts."""
    base = open_base(inputs, context)
    rows = prompt_rows(spec, inputs, context, base)

    def load() -> PeftModel:
        return open_trained_policy(spec, inputs, context, base, reference=False)  # the trainer makes the copy

    def trainer(job: Job) -> GroupTrainer:
        # On the policy's own base: a reward model is some more adapters on it.
        reward = open_scorer(spec.reward, inputs, context, host=job.model)
        return method.trainer(
            job.model,
            _arguments(job.spec, base, context, method),
            reward=reward.score,
            penalties=[open_penalty(penalty, inputs, context) for penalty in job.spec.reward.penalties],
            train_dataset=job.train,
            processing_class=base.tokenizer,
            callbacks=job.callbacks,
        )

    return Opened(base.tokenizer, base.location.name, rows, load, trainer)


def _arguments(spec: GroupSpec, base: OpenBase, context: StageContext, method: GroupMethod) -> Any:
    return training_arguments(
        method.config,
        spec,
        directory=context.directory,
        seed=context.seed,
        dtype=context.recipe.model.dtype,
        include_num_input_tokens_seen="no",  # the trainer counts them itself
        max_length=base.max_length(spec.max_length),
        max_completion_length=spec.max_new_tokens,
        num_generations=spec.samples_per_prompt,
        beta=spec.kl.coefficient,
        epsilon=spec.cliprange,
        epsilon_high=spec.cliprange_high,
        **scaling(spec.reward),
        **{name: getattr(spec, name) for name in (*_SAME, *method.own)},
    )
