"""`kind: ppo`: proximal policy optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from peft import PeftModel

from prefopt.feedback.judges import label
from prefopt.models.actor_critic import save_value
from prefopt.models.reward_artefact import RewardArtefact, read_artefact
from prefopt.models.roles import POLICY, save_adapter
from prefopt.pipeline.adapters import Job, Opened, Tokenised, demonstration_rows, open_trained_policy
from prefopt.pipeline.base_model import OpenBase, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import ppo_cost
from prefopt.pipeline.costs import open_penalty
from prefopt.pipeline.online import SAMPLES_TRACKED, prompt_rows, reward_passes, scaling
from prefopt.pipeline.scoring import open_scorer
from prefopt.pipeline.training import final_metrics, kept_outputs, train
from prefopt.recipe.schema import PPOSpec
from prefopt.recipe.scorers import JudgeSpec
from prefopt.records import Prompt
from prefopt.store.files import write_json_lines
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.guards import GuardLimits
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.watch import Judge

# Names that a stage and PPOConfig share.
_SAME = (
    "total_episodes",
    "rollout_batch_size",
    "samples_per_prompt",
    "num_ppo_epochs",
    "num_mini_batches",
    "max_new_tokens",
    "temperature",
    "stop",
    "mask_truncated_completions",
    "score_prefixes",
    "gamma",
    "lam",
    "cliprange",
    "cliprange_high",
    "dual_clip",
    "cliprange_value",
    "vf_coef",
    "entropy_coef",
    "ptx_coef",
    "value",
    "value_learning_rate",
    "value_warmup_rollouts",
    "whiten_rewards",
    "whiten_advantages",
)
_LIMITS = tuple(each.name for each in fields(GuardLimits) if each.name != "max_kl")  # that one is `kl.stop_above`


def run(spec: PPOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to get rewards; writes it, `value/`, `tokenizer/`, `samples.jsonl` and `microscope.jsonl`.

    The last two are of the last rollout, the latter token by token.
    """
    stage = opened(spec, inputs, context)
    model = stage.load()

    def build(callbacks: list[Any]) -> PPOTrainer:
        return cast(PPOTrainer, stage.build(spec, model, callbacks))

    trained = train(build, spec, context, samples=lambda trainer: trainer.watch.latest[:SAMPLES_TRACKED])
    if context.rank > 0:
        return StageResult({}, [])
    save_adapter(model, POLICY, context.directory / "adapter", stage.name)
    save_value(trained.model, context.directory / "value", stage.name)
    stage.tokenizer.save_pretrained(context.directory / "tokenizer")
    samples = [{"policy": context.stage, **row} for row in trained.watch.latest]
    for name, lines in (("samples.jsonl", samples), ("microscope.jsonl", trained.watch.close_ups)):
        write_json_lines(context.directory / name, lines, sort_keys=True)
    outputs = ["adapter", "value", "tokenizer", "samples.jsonl", "microscope.jsonl", *kept_outputs(spec)]
    cost = ppo_cost(trained, reward_passes=reward_passes(spec, inputs))
    details = stage.rows.details | {
        "guards": {"ended_by": trained.watch.guards.reason, "kept_rollout": trained.watch.guards.best}
    }
    if trained.watch.guards.reason:
        context.log(f"a guard spoke up: {trained.watch.guards.reason}")
    return StageResult(metrics=final_metrics(context), outputs=outputs, details=details, cost=cost)


def opened(spec: PPOSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained; its rows are prompts."""
    base = open_base(inputs, context)
    rows = prompt_rows(spec, inputs, context, base)
    imitated: Tokenised = ()
    if spec.demonstrations:
        imitated = demonstration_rows(spec.demonstrations, spec.max_length, inputs, context, base).train
    rewards, linear = _reward_model(spec, inputs), spec.reward.bound == "none"

    def load() -> PeftModel:
        return open_trained_policy(spec, inputs, context, base, reference=True)

    def trainer(job: Job) -> PPOTrainer:
        # On the policy's own base: a reward model is some more adapters on it.
        reward = open_scorer(spec.reward, inputs, context, host=job.model)
        judge = _judge(spec.judge, inputs, context, job.model) if spec.judge else None
        return PPOTrainer(
            job.model,
            trainer_arguments(job.spec, base, context),
            reward=reward.score,
            penalties=[open_penalty(penalty, inputs, context) for penalty in job.spec.reward.penalties],
            judge=judge,
            train_dataset=job.train,
            demonstrations=imitated,
            processing_class=base.tokenizer,
            # The value starts as the reward, unless that has a constant, which a value of raw scores would lack, or is
            # no linear function of the score.
            reward_model=rewards[0] / "adapter" if rewards and not rewards[1].origin and linear else None,
            callbacks=job.callbacks,
        )

    return Opened(base.tokenizer, base.location.name, rows, load, trainer)


def trainer_arguments(spec: PPOSpec, base: OpenBase, context: StageContext) -> PPOConfig:
    """The options of a stage as its trainer takes them."""
    guards = spec.guards
    return training_arguments(
        PPOConfig,
        spec,
        directory=context.directory,
        seed=context.seed,
        dtype=context.recipe.model.dtype,
        include_num_input_tokens_seen="no",  # the trainer counts them itself
        max_length=base.max_length(spec.max_length),
        kl_coefficient=spec.kl.coefficient,
        kl_estimator=spec.kl.chosen,
        kl_apply=spec.kl.apply,
        kl_target=spec.kl.adaptive_target,
        kl_horizon=spec.kl.horizon,
        kl_bounds=(spec.kl.min_coefficient, spec.kl.max_coefficient),
        kl_stop_above=spec.kl.stop_above,
        **scaling(spec.reward),
        guards=GuardLimits(**{name: getattr(guards, name) for name in _LIMITS}),
        stop_on_guard=guards.action == "stop",
        select=guards.keep,
        uncertainty_weight=guards.uncertainty_weight,
        judge_every=guards.judge_every,
        judge_prompts=guards.judge_prompts,
        **{name: getattr(spec, name) for name in _SAME},
    )


def _judge(spec: JudgeSpec, inputs: Inputs, context: StageContext, host: PeftModel) -> Judge:
    """Who prefers, as in a collect stage; the noise of a label follows from the seed and the two answers."""
    scorer = open_scorer(spec, inputs, context, host=host)

    def preferred(prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float]:
        scores = [score.value for score in scorer.score([*prompts, *prompts], [*first, *second])]
        found = []
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            rng = random.Random(f"{context.seed} {prompts[place]!r} {one} {other}")
            gap = scores[place] - scores[len(first) + place]
            found.append(label(gap, spec.labels, spec.noise, spec.scale, rng))
        return found

    return preferred


def _reward_model(spec: PPOSpec, inputs: Inputs) -> tuple[Path, RewardArtefact] | None:
    """Folder and description of the reward model, where one gives the rewards."""
    source = spec.reward.model
    if source is None or source not in inputs:
        return None
    return inputs[source].directory, read_artefact(inputs[source].directory)
