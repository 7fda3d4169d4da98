"""`kind: reward`: a reward model, trained on preference pairs and measured on those that are held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from prefopt.data.load import load_pairs
from prefopt.models.heads import RewardModel, new_reward_model
from prefopt.models.roles import lora_config
from prefopt.pipeline.adapters import Job, Opened, encoded_rows
from prefopt.pipeline.base_model import adapter_of, load_weights, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import training_cost
from prefopt.pipeline.training import final_metrics, train
from prefopt.recipe.schema import RewardSpec
from prefopt.stats.intervals import wilson
from prefopt.store.files import write_atomic, write_json
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.reward import RewardConfig, RewardTrainer
from prefopt.trainers.rows import pair_row


def run(spec: RewardSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter and a head; writes `adapter/`, `tokenizer/`, `scores.jsonl` and `table.json`."""
    stage = opened(spec, inputs, context)
    model = stage.load()

    def build(callbacks: list[Any]) -> RewardTrainer:
        return cast(RewardTrainer, stage.build(spec, model, callbacks))

    trained = train(build, spec, context)
    trained.save_weights(context.directory / "adapter")
    stage.tokenizer.save_pretrained(context.directory / "tokenizer")
    metrics = {**final_metrics(context), **_measure(trained, stage.rows.evaluation, context)}
    outputs = ["adapter", "tokenizer", "scores.jsonl", "table.json"]
    cost = training_cost(trained, head=False)
    return StageResult(metrics=metrics, outputs=outputs, details=stage.rows.details, cost=cost)


def opened(spec: RewardSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    base = open_base(inputs, context)
    rows = encoded_rows(spec, inputs, context, base, load_pairs, pair_row)

    def load() -> RewardModel:
        lora = lora_config(context.recipe.model.lora)
        return new_reward_model(load_weights(base, context), lora, adapter_of(spec.init, inputs))

    def trainer(job: Job) -> RewardTrainer:
        args = training_arguments(
            RewardConfig,
            job.spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            center_rewards_coefficient=job.spec.center_rewards_coefficient,
        )
        return RewardTrainer(
            job.model,
            args,
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            processing_class=base.tokenizer,
            callbacks=job.callbacks,
        )

    return Opened(base.tokenizer, base.location.name, rows, load, trainer)


def _measure(trained: RewardTrainer, pairs: Sequence[Any], context: StageContext) -> dict[str, float]:
    """Accuracy on held-out pairs, over rows; a tie of the label says nothing, a tie of the scores counts half."""
    chosen, rejected = trained.scores(pairs)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    lines = [
        json.dumps({"chosen": c, "rejected": r, "probability": pair["probability"]}, allow_nan=False)
        for c, r, pair in zip(chosen, rejected, pairs, strict=True)
    ]
    write_atomic(context.directory / "scores.jsonl", "".join(line + "\n" for line in lines))
    told = [
        margin if pair["probability"] > 0.5 else -margin
        for margin, pair in zip(margins, pairs, strict=True)
        if pair["probability"] != 0.5
    ]
    if not told:
        write_json(context.directory / "table.json", {"columns": ["reward model", "held-out pairs"], "rows": []})
        return {}
    accuracy = wilson(sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in told), len(told))
    row = [
        context.stage,
        f"{len(told)}",
        f"{accuracy.estimate:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]",
        f"{sum(told) / len(told):.2f}",
    ]
    columns = ["reward model", "held-out pairs", "accuracy", "mean margin"]
    write_json(context.directory / "table.json", {"columns": columns, "rows": [row]})
    return {
        "reward/accuracy/mean": accuracy.estimate,
        "reward/accuracy/ci_low": accuracy.low,
        "reward/accuracy/ci_high": accuracy.high,
    }
