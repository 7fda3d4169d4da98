"""`kind: ppo`: proximal policy optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from peft import PeftModel

from prefopt.data.load import load_prompts
from prefopt.errors import DataError
from prefopt.models.reward_artefact import RewardArtefact, read_artefact
from prefopt.models.roles import POLICY, save_adapter
from prefopt.pipeline.adapters import Job, Opened, Rows, open_trained_policy
from prefopt.pipeline.base_model import OpenBase, data_of, data_policy, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import ppo_cost
from prefopt.pipeline.scoring import open_scorer
from prefopt.pipeline.training import final_metrics, kept_outputs, train
from prefopt.recipe.schema import PPOSpec
from prefopt.store.files import write_atomic
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.ppo_config import PPOConfig

# Names that a stage and PPOConfig share.
_SAME = (
    "total_episodes",
    "rollout_batch_size",
    "num_ppo_epochs",
    "num_mini_batches",
    "max_new_tokens",
    "temperature",
    "gamma",
    "lam",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "value",
    "whiten_rewards",
)
SAMPLES_TRACKED = 100


def run(spec: PPOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to get rewards; writes `adapter/`, `tokenizer/` and `samples.jsonl`, the last rollout."""
    stage = opened(spec, inputs, context)
    model = stage.load()

    def build(callbacks: list[Any]) -> PPOTrainer:
        return cast(PPOTrainer, stage.build(spec, model, callbacks))

    trained = train(build, spec, context, samples=lambda trainer: trainer.latest[:SAMPLES_TRACKED])
    if context.rank > 0:
        return StageResult({}, [])
    save_adapter(model, POLICY, context.directory / "adapter", stage.name)
    stage.tokenizer.save_pretrained(context.directory / "tokenizer")
    lines = [
        json.dumps({"policy": context.stage, **row}, ensure_ascii=False, allow_nan=False, sort_keys=True)
        for row in trained.latest
    ]
    write_atomic(context.directory / "samples.jsonl", "".join(line + "\n" for line in lines))
    outputs = ["adapter", "tokenizer", "samples.jsonl", *kept_outputs(spec)]
    rewards = _reward_model(spec, inputs)
    cost = ppo_cost(trained, reward_passes=len(rewards[1].adapters) if rewards else 0)
    return StageResult(metrics=final_metrics(context), outputs=outputs, details=stage.rows.details, cost=cost)


def opened(spec: PPOSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained, and what scores already loaded; its rows are prompts."""
    base = open_base(inputs, context)
    rows, details = _prompts(spec, inputs, context, base)
    scorer = open_scorer(spec.reward, inputs, context)
    rewards = _reward_model(spec, inputs)

    def load() -> PeftModel:
        return open_trained_policy(spec, inputs, context, base, reference=True)

    def trainer(job: Job) -> PPOTrainer:
        args = training_arguments(
            PPOConfig,
            job.spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            include_num_input_tokens_seen="no",  # the trainer counts them itself
            max_length=base.max_length(job.spec.max_length),
            kl_coefficient=job.spec.kl.coefficient,
            kl_stop_above=job.spec.kl.stop_above,
            normalise=job.spec.reward.normalise,
            reward_clip=job.spec.reward.clip,
            missing_eos_penalty=job.spec.reward.missing_eos_penalty,
            **{name: getattr(job.spec, name) for name in _SAME},
        )
        return PPOTrainer(
            job.model,
            args,
            reward=lambda prompts, completions: [score.value for score in scorer.score(prompts, completions)],
            train_dataset=job.train,
            processing_class=base.tokenizer,
            # The value starts as the reward, unless that has a constant, which a value of raw scores would lack.
            reward_model=rewards[0] / "adapter" if rewards and not rewards[1].origin else None,
            callbacks=job.callbacks,
        )

    return Opened(base.tokenizer, base.location.name, Rows(rows, (), details), load, trainer)


def _reward_model(spec: PPOSpec, inputs: Inputs) -> tuple[Path, RewardArtefact] | None:
    """Folder and description of the reward model, where one gives the rewards."""
    source = spec.reward.model
    if source is None or source not in inputs:
        return None
    return inputs[source].directory, read_artefact(inputs[source].directory)


def _prompts(
    spec: PPOSpec, inputs: Inputs, context: StageContext, base: OpenBase
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
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
    return rows, details
