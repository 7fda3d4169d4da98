"""`kind: ppo`: proximal policy optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

import json
from typing import Any

from prefopt.data.load import load_prompts
from prefopt.errors import DataError
from prefopt.models.reward_artefact import read_artefact
from prefopt.models.roles import POLICY, save_adapter
from prefopt.pipeline.adapters import open_trained_policy
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
    base = open_base(inputs, context)
    rows, details = _prompts(spec, inputs, context, base)
    scorer = open_scorer(spec.reward, inputs, context)
    model = open_trained_policy(spec, inputs, context, base, reference=True)
    source = spec.reward.model
    rewards = read_artefact(inputs[source].directory) if source is not None and source in inputs else None
    # The value starts as the reward, unless that has a constant, which a value that predicts raw scores would lack.
    starts = rewards is not None and not rewards.origin
    reward_model = inputs[str(source)].directory / "adapter" if starts else None

    def build(callbacks: list[Any]) -> PPOTrainer:
        args = training_arguments(
            PPOConfig,
            spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            include_num_input_tokens_seen="no",  # the trainer counts them itself
            max_length=base.max_length(spec.max_length),
            kl_coefficient=spec.kl.coefficient,
            kl_stop_above=spec.kl.stop_above,
            normalise=spec.reward.normalise,
            reward_clip=spec.reward.clip,
            missing_eos_penalty=spec.reward.missing_eos_penalty,
            **{name: getattr(spec, name) for name in _SAME},
        )
        trainer = PPOTrainer(
            model,
            args,
            reward=lambda prompts, completions: [score.value for score in scorer.score(prompts, completions)],
            train_dataset=rows,
            processing_class=base.tokenizer,
            reward_model=reward_model,
            callbacks=callbacks,
        )
        trainer.base_name = base.location.name
        return trainer

    trained = train(build, spec, context, samples=lambda trainer: trainer.latest[:SAMPLES_TRACKED])
    if context.rank > 0:
        return StageResult({}, [])
    save_adapter(model, POLICY, context.directory / "adapter", base.location.name)
    base.tokenizer.save_pretrained(context.directory / "tokenizer")
    lines = [
        json.dumps({"policy": context.stage, **row}, ensure_ascii=False, allow_nan=False, sort_keys=True)
        for row in trained.latest
    ]
    write_atomic(context.directory / "samples.jsonl", "".join(line + "\n" for line in lines))
    outputs = ["adapter", "tokenizer", "samples.jsonl", *kept_outputs(spec)]
    cost = ppo_cost(trained, reward_passes=len(rewards.adapters) if rewards else 0)
    return StageResult(metrics=final_metrics(context), outputs=outputs, details=details, cost=cost)


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
