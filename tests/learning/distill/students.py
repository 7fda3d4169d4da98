"""Students of one teacher, the same model under the policy: what each target makes of a student that reads nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.roles import POLICY
from prefopt.models.soft_prompt import sample_from, soft_prompt_on
from prefopt.trainers.collapse import CollapseLimits, Look
from prefopt.trainers.distill import DistillTrainer
from prefopt.trainers.distill_config import DistillConfig
from tests.learning.distill import world
from tests.learning.distill.world import NONE, OTHER

PROMPTS, HELD_OUT = 768, 256
SAMPLES = 16
"""Answers to a prompt whose variety is measured."""
NEW_TOKENS = world.LONGEST + 4
UNWATCHED = CollapseLimits(None, None, every=10**6, prompts=2)
OPTIONS: Mapping[str, Any] = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "max_steps": 300,
    "learning_rate": 2e-3,
    "warmup_steps": 15,
    "lr_scheduler_type": "linear",
    "logging_steps": 10**6,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "max_length": 64,
    "max_new_tokens": NEW_TOKENS,
}


@dataclass(frozen=True)
class Target:
    """How a student is taught.

    Attributes:
        temperature: Of the teacher's answers; 0 is greedy.
        soft: Whether its distributions are learned, not the answers.
        on_policy: Whether the student answers.
        replay: Share of real data under no context and under the other one.
        vectors: Of a soft prompt; 0 trains an adapter.
        options: Of the trainer, over those of all.
    """

    temperature: float = 1.0
    soft: bool = False
    on_policy: bool = False
    replay: float = 0.0
    vectors: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


TARGETS: Mapping[str, Target] = {
    "argmax": Target(0.0),
    "sample": Target(),
    "soft": Target(soft=True),
    "on-policy reverse KL": Target(on_policy=True, options={"divergence": "reverse", "max_steps": 150}),
    "soft + half replay": Target(soft=True, replay=0.5),
    "soft prompt, 4 vectors": Target(soft=True, vectors=4, options={"learning_rate": 0.1}),
}


def adapted(model: PreTrainedModel, seed: int) -> PeftModel:
    """The model with a fresh adapter."""
    torch.manual_seed(seed)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    return get_peft_model(model, lora, adapter_name=POLICY)


def trainer(
    peft: PeftModel,
    rows: Sequence[Mapping[str, Any]],
    seed: int,
    *,
    held_out: Sequence[Mapping[str, Any]] = (),
    elsewhere: Sequence[Mapping[str, Any]] = (),
    origin: Look | None = None,
    **options: Any,
) -> DistillTrainer:
    """prefopt's own, in a folder that is gone afterwards."""
    fields = {"guards": UNWATCHED, **OPTIONS, "output_dir": tempfile.mkdtemp(), "seed": seed, **options}
    return DistillTrainer(
        peft, DistillConfig(**fields), train_dataset=rows, eval_dataset=held_out, real_dataset=elsewhere,
        origin=origin, processing_class=world.tokenizer(),
    )  # fmt: skip


def taught(
    model: PreTrainedModel, asked: Sequence[Sequence[int]], temperature: float, seed: int, *, soft: bool
) -> list[dict[str, Any]]:
    """What the model says under the policy, as rows of a student that reads none."""
    prompts = [world.prompt(world.POLICY, each) for each in asked]
    options = SamplingOptions(NEW_TOKENS, temperature=temperature, batch_size=256, seed=seed)
    said = sample(model, world.tokenizer(), prompts, options)
    return [
        {"prompt_ids": world.prompt(NONE, each), "teacher_prompt_ids": prompt, "completion_ids": list(one.ids),
         "soft": soft}
        for each, prompt, one in zip(asked, prompts, said, strict=True)
    ]  # fmt: skip


def rows_of(model: PreTrainedModel, target: Target, seed: int) -> list[dict[str, Any]]:
    """What a student of a target is trained on."""
    asked = world.questions(PROMPTS, seed + 1000)
    rows = taught(model, asked, target.temperature, seed, soft=target.soft)
    if target.on_policy:
        rows = [{name: row[name] for name in ("prompt_ids", "teacher_prompt_ids")} for row in rows]
    count = round(target.replay / (1 - target.replay) * len(rows)) if target.replay else 0
    # The teacher reads what the student does there, so its distributions are those of the start.
    replayed = world.real(OTHER, world.questions(count, seed + 2000), seed)
    return [*rows, *({**row, "soft": target.soft, "replay": True} for row in replayed)]


def measured(made: DistillTrainer, seed: int) -> dict[str, float]:
    """How a student is on held-out prompts: see the page's table."""
    asked = world.questions(HELD_OUT, seed + 3000)
    policy, base = made.model, made.model.peft.get_base_model()
    with policy.active("start"):
        rows = taught(base, asked, 1.0, seed + 1, soft=True)
    prompts = [row["prompt_ids"] for row in rows]
    sampled = _said(made, prompts, seed, 1.0)
    many = _said(made, [ids for ids in prompts[:32] for _ in range(SAMPLES)], seed + 1, 1.0)
    groups = [many[start : start + SAMPLES] for start in range(0, len(many), SAMPLES)]
    greedy = _said(made, prompts, seed, 0.0)
    ruled = [one.ids[0] == world.ruled(world.POLICY, each) for one, each in zip(greedy, asked, strict=True)]
    elsewhere = [{**row, "teacher_prompt_ids": row["prompt_ids"]} for row in world.real(OTHER, asked, seed + 2)]
    return {
        "kl": made.measure(rows)["kl"],
        "style": world.style([one.ids for one in sampled]),
        "rule": sum(ruled) / len(ruled),
        "entropy": sum(sum(one.entropies) for one in sampled) / sum(len(one.ids) for one in sampled),
        "distinct": sum(len({one.ids for one in group}) for group in groups) / len(many),
        # Vectors that are not read in the other context change nothing there.
        "drift": 0.0 if policy.soft_prompt else made.measure(elsewhere, against="start")["kl"],
    }


def _said(made: DistillTrainer, prompts: Sequence[Sequence[int]], seed: int, temperature: float) -> list[Sampled]:
    options = SamplingOptions(NEW_TOKENS, temperature=temperature, batch_size=256, seed=seed, say=True)
    return sample_from(made.model, world.tokenizer(), prompts, options, None, None)


def student(model: PreTrainedModel, name: str, seed: int) -> dict[str, float]:
    """Train a student of a target, and measure it."""
    target = TARGETS[name]
    rows = rows_of(model, target, seed)
    peft = soft_prompt_on(model, world.tokenizer(), target.vectors) if target.vectors else adapted(model, seed)
    made = trainer(peft, rows, seed, on_policy=target.on_policy, **target.options)
    made.train()
    return measured(made, seed)


def before(model: PreTrainedModel, seed: int) -> dict[str, float]:
    """The student before training."""
    made = trainer(adapted(model, seed), taught(model, world.questions(8, 1), 1.0, seed, soft=True), seed)
    return measured(made, seed)


def teacher(model: PreTrainedModel, seed: int) -> dict[str, float]:
    """Style, rule, entropy and variety of the teacher itself."""
    asked = world.questions(HELD_OUT, seed + 3000)
    prompts = [world.prompt(world.POLICY, each) for each in asked]

    def said(ids: Sequence[Sequence[int]], temperature: float) -> list[Sampled]:
        options = SamplingOptions(NEW_TOKENS, temperature=temperature, batch_size=256, seed=seed, say=True)
        return sample(model, world.tokenizer(), ids, options)

    sampled, greedy = said(prompts, 1.0), said(prompts, 0.0)
    many = said([ids for ids in prompts[:32] for _ in range(SAMPLES)], 1.0)
    groups = [many[start : start + SAMPLES] for start in range(0, len(many), SAMPLES)]
    ruled = [one.ids[0] == world.ruled(world.POLICY, each) for one, each in zip(greedy, asked, strict=True)]
    return {
        "style": world.style([one.ids for one in sampled]),
        "rule": sum(ruled) / len(ruled),
        "entropy": sum(sum(one.entropies) for one in sampled) / sum(len(one.ids) for one in sampled),
        "distinct": sum(len({one.ids for one in group}) for group in groups) / len(many),
    }
