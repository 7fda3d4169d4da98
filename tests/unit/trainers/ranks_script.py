"""Trains with every trainer on as many ranks as it is launched with. Also a program: `ranks_script.py FOLDER WHAT…`.

The rows of an optimiser step over all ranks are always the same, so any number of ranks should end alike.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainingArguments

from prefopt.data.templates import Encoder
from prefopt.models.heads import new_reward_model, save_reward
from prefopt.models.reward_artefact import RewardArtefact, open_reward, write_artefact
from prefopt.models.roles import REWARD
from prefopt.recipe.options.costs import RepetitionCost
from prefopt.records import Score
from prefopt.rewards import Shaper
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.flags import WeightedCost
from prefopt.rewards.model import RewardModelScorer
from prefopt.rewards.scale import RewardScale
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.collapse import CollapseLimits
from prefopt.trainers.distill import DistillTrainer
from prefopt.trainers.distill_config import DistillConfig
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.pretrain import LanguageModelingCollator, PretrainTrainer
from prefopt.trainers.ranks import gathered, rank, ranks
from prefopt.trainers.reward import RewardConfig, RewardTrainer
from prefopt.trainers.sequence_unlikelihood import SequenceUnlikelihood
from prefopt.trainers.trl import (
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
    language_modeling_rows,
)
from tests.tiny import random_rows, tiny_llama, tiny_policy, tiny_tokenizer
from tests.unit.trainers.priced import penalties

PASS = 4  # rows of a pass over all ranks
# 21 rows in steps of 8: in the last step one rank has 3 rows, then 1, then none.
ROWS, HELD_OUT = 21, 7


class Recorder(TrainerCallback):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        timed = ("runtime", "per_second", "seconds", "flos", "time")
        kept = {name: value for name, value in (logs or {}).items() if not any(word in name for word in timed)}
        self.logs.append({"step": state.global_step, **kept})


class KillRank(TrainerCallback):
    """Ends one rank as the system does when memory runs out."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step and rank() == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def common(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": PASS // ranks(),
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        # Adam's first step is the gradient's sign, which rounding decides where a gradient is about 0.
        "adam_epsilon": 1e-4,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 5,
        "dataloader_pin_memory": False,
        **more,
    }


def with_dropout(policy: Any, share: float) -> Any:
    for module in policy.modules():
        if "lora_dropout" in dict(module.named_children()):
            for name in module.lora_dropout:
                module.lora_dropout[name] = torch.nn.Dropout(share)
    return policy


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs with weights and soft labels of all kinds."""
    return [
        {**row, "weight": 0.5 + number % 3, "probability": (1.0, 0.8, 0.3)[number % 3]}
        for number, row in enumerate(random_rows(count, seed))
    ]


def language_rows(count: int, seed: int = 0) -> Any:
    rows = random_rows(count, seed)
    return language_modeling_rows(
        [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in rows]
    )


def own_answers() -> SequenceUnlikelihood:
    """Unlearns repetitions in the policy's own answers, in every second step."""
    cost = rule_cost(RepetitionCost(cost="repetition", ngram=2))
    return SequenceUnlikelihood([WeightedCost(cost, 2.0)], every=2, max_new_tokens=8)


def sft(folder: Path, callbacks: list[Any], dropout: float = 0.0, **more: Any) -> SFTTrainer:
    args = SFTConfig(
        **common(folder, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True}, bf16=False)
    )
    return SFTTrainer(
        model=with_dropout(tiny_policy(), dropout), args=args, train_dataset=language_rows(ROWS),
        eval_dataset=language_rows(HELD_OUT, 9), processing_class=tiny_tokenizer(), callbacks=callbacks, **more,
    )  # fmt: skip


def own_sft(folder: Path, callbacks: list[Any]) -> SFTTrainer:
    return sft(folder, callbacks, sequence_unlikelihood=own_answers())


def reward(folder: Path, callbacks: list[Any], kind: type[RewardTrainer] = RewardTrainer) -> RewardTrainer:
    return kind(
        tiny_policy(adapter="reward"), RewardConfig(**common(folder)), train_dataset=pairs(ROWS),
        eval_dataset=unweighted(HELD_OUT), processing_class=tiny_tokenizer(), callbacks=callbacks,
    )  # fmt: skip


def dpo(folder: Path, callbacks: list[Any], kind: type[DPOTrainer] = DPOTrainer, **more: Any) -> DPOTrainer:
    return kind(
        tiny_policy(), DPOConfig(**common(folder)), train_dataset=pairs(ROWS),
        eval_dataset=unweighted(HELD_OUT), processing_class=tiny_tokenizer(), callbacks=callbacks, **more,
    )  # fmt: skip


def own_dpo(folder: Path, callbacks: list[Any]) -> DPOTrainer:
    return dpo(folder, callbacks, sequence_unlikelihood=own_answers())


def unweighted(count: int) -> list[dict[str, Any]]:
    return [{**row, "weight": 1.0, "probability": 1.0} for row in random_rows(count, 9)]


def words(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    return [float(text.count("e")) - 0.1 * len(text) for text in completions]


def longer(prompts: Any, first: Any, second: Any) -> list[float]:
    """A judge who likes the longer text."""
    pairs = [(len(one), len(other)) for one, other in zip(first, second, strict=True)]
    return [0.5 if one == other else float(one > other) for one, other in pairs]


def ppo(folder: Path, callbacks: list[Any], value: str = "adapter") -> PPOTrainer:
    return ppo_of(folder, callbacks, tiny_policy(), {"reward": words}, value=value)


def full_ppo(folder: Path, callbacks: list[Any], value: str = "adapter") -> PPOTrainer:
    """With an ensemble on the policy's base as reward, penalties, a judge, demonstrations, recomputed activations."""
    policy = tiny_policy()
    ensemble, artefact = open_reward(policy, reward_artefact(folder.with_name(f"{folder.name}.reward.{rank()}")))
    scorer = RewardModelScorer(ensemble, Encoder(tiny_tokenizer(), 128), 0, name="reward", artefact=artefact)
    rows = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in random_rows(ROWS, 4)]
    given = {"reward": scorer.score, "judge": longer, "demonstrations": rows, "penalties": penalties()}
    return ppo_of(
        folder, callbacks, policy, given, value=value, samples_per_prompt=2, score_prefixes=2,
        normalise="running", kl_target=0.5, kl_horizon=100, select="bound", judge_every=1,
        mask_truncated_completions=True, stop=("e",), entropy_coef=0.01, activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": False}, value_warmup_rollouts=1,
    )  # fmt: skip


def reward_artefact(folder: Path) -> Path:
    """An ensemble of two, which every rank writes for itself."""
    for number in range(2):
        base = tiny_llama()
        torch.manual_seed(number)
        lora = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        model = new_reward_model(base, lora, None)
        save_reward(model.peft, REWARD, model.score, folder / f"member_{number}", "tiny")
    write_artefact(folder, RewardArtefact(adapters=("member_0", "member_1")))
    return folder


def ppo_of(folder: Path, callbacks: list[Any], policy: Any, given: dict[str, Any], **options: Any) -> PPOTrainer:
    fields = common(
        folder, total_episodes=48, rollout_batch_size=16, num_ppo_epochs=2, num_mini_batches=2, max_new_tokens=6,
        max_length=64, per_device_eval_batch_size=3, eval_strategy="no", save_steps=4, **options,
    )  # fmt: skip
    del fields["num_train_epochs"], fields["gradient_accumulation_steps"]
    prompts = [{"prompt": text} for text in ("the lamp", "the chair costs", "is", "nine euro", "red lamp is the")]
    return PPOTrainer(
        policy, PPOConfig(**fields), train_dataset=prompts, processing_class=tiny_tokenizer(), callbacks=callbacks,
        **given,
    )  # fmt: skip


def shared_ppo(folder: Path, callbacks: list[Any]) -> PPOTrainer:
    return ppo(folder, callbacks, "shared")


def full_shared_ppo(folder: Path, callbacks: list[Any]) -> PPOTrainer:
    return full_ppo(folder, callbacks, "shared")


def grpo(folder: Path, callbacks: list[Any]) -> GRPOTrainer:
    return groups(GRPOConfig, GRPOTrainer, folder, callbacks, scale_rewards="batch", beta=0.2)


def rloo(folder: Path, callbacks: list[Any]) -> RLOOTrainer:
    return groups(RLOOConfig, RLOOTrainer, folder, callbacks, normalise="running", normalize_advantages=True)


def groups(config: Any, build: Any, folder: Path, callbacks: list[Any], **options: Any) -> Any:
    """Groups of 8 of which each of two ranks has a half, and the rows of a step in two passes."""
    fields = common(
        folder, total_episodes=48, rollout_batch_size=16, num_generations=8, num_iterations=2, num_mini_batches=1,
        max_completion_length=6, max_length=64, per_device_eval_batch_size=3, eval_strategy="no", **options,
    )  # fmt: skip
    del fields["num_train_epochs"], fields["gradient_accumulation_steps"]
    prompts = [{"prompt": text} for text in ("the lamp", "the chair costs", "is", "nine euro", "red lamp is the")]
    return build(
        tiny_policy(), config(**fields), reward=words, train_dataset=prompts, processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )  # fmt: skip


def kto(folder: Path, callbacks: list[Any], loss_type: str = "apo_zero_unpaired") -> KTOTrainer:
    return KTOTrainer(
        tiny_policy(), KTOConfig(**common(folder, loss_type=loss_type)), train_dataset=marked(ROWS),
        eval_dataset=marked(HELD_OUT, 9), processing_class=tiny_tokenizer(), callbacks=callbacks,
    )  # fmt: skip


def estimated_kto(folder: Path, callbacks: list[Any]) -> KTOTrainer:
    """Where mismatched completions are those of the same rank, so that one process has others."""
    return kto(folder, callbacks, "kto")


def marked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"], "label": number % 3 > 0}
        for number, row in enumerate(random_rows(count, seed))
    ]


def distill(folder: Path, callbacks: list[Any], **options: Any) -> DistillTrainer:
    """Soft and hard targets, of other weights, real data among them, and guards that look."""
    fields = common(folder, max_new_tokens=6, guards=CollapseLimits(None, None, every=2, prompts=5), **options)
    rows = [
        {"prompt_ids": row["prompt_ids"], "teacher_prompt_ids": [1, 7, 9, *row["prompt_ids"][1:]],
         "completion_ids": row["chosen_ids"], "soft": number % 3 > 0, "replay": number % 4 == 0,
         "weight": 0.5 + number % 3}
        for number, row in enumerate(random_rows(ROWS + HELD_OUT))
    ]  # fmt: skip
    if fields.get("on_policy"):
        for number, row in enumerate(rows[:ROWS]):
            if number % 4:
                del row["completion_ids"]
    return DistillTrainer(
        tiny_policy(), DistillConfig(**fields), train_dataset=rows[:ROWS], eval_dataset=rows[ROWS:],
        real_dataset=rows[ROWS:], processing_class=tiny_tokenizer(), callbacks=callbacks,
    )  # fmt: skip


def on_policy_distill(folder: Path, callbacks: list[Any]) -> DistillTrainer:
    return distill(folder, callbacks, on_policy=True, divergence="reverse")


def pretrain(folder: Path, callbacks: list[Any]) -> PretrainTrainer:
    return PretrainTrainer(
        model=tiny_llama().requires_grad_(True), args=TrainingArguments(**common(folder)),
        data_collator=LanguageModelingCollator(0), train_dataset=list(language_rows(ROWS)),
        eval_dataset=list(language_rows(HELD_OUT, 9)), callbacks=callbacks,
    )  # fmt: skip


class AroundTheWrapper(DPOTrainer):
    """What must not be done: the policy's pass goes to the module inside the wrapper."""

    def pair_losses(self, model, inputs):
        return super().pair_losses(self.accelerator.unwrap_model(model), inputs)


def bypassed(folder: Path, callbacks: list[Any]) -> DPOTrainer:
    return dpo(folder, callbacks, AroundTheWrapper)


def dropped(folder: Path, callbacks: list[Any]) -> SFTTrainer:
    return sft(folder, callbacks, dropout=0.3)


def killed(folder: Path, callbacks: list[Any]) -> SFTTrainer:
    """`dropped`, in which rank 1 is killed after the checkpoint of step 4."""
    return sft(folder.with_name("resumed"), [*callbacks, KillRank(1, 5)], dropout=0.3)


def resumed(folder: Path, callbacks: list[Any]) -> SFTTrainer:
    return sft(folder, callbacks, dropout=0.3)


BUILD: dict[str, Callable[[Path, list[Any]], CheckpointedTrainer]] = {
    "sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo, "shared_ppo": shared_ppo, "full_ppo": full_ppo,
    "full_shared_ppo": full_shared_ppo, "pretrain": pretrain,
    "grpo": grpo, "rloo": rloo, "kto": kto, "estimated_kto": estimated_kto,
    "distill": distill, "on_policy_distill": on_policy_distill,
    "own_sft": own_sft, "own_dpo": own_dpo,
    "bypassed": bypassed, "dropped": dropped, "killed": killed, "resumed": resumed,
}  # fmt: skip


TEXTS = ("the lamp is red", "e e e e e e e", "is", "the the", "nine euro and more than that", "a lamp")


def shaped(folder: Path) -> None:
    """Call the shaper as TRL does, each rank with its own completions, and write what it says and what it knows."""
    shaper = Shaper(penalties(), scale=RewardScale("running"), score=lambda p, t: [Score(len(x), 0.5) for x in t])
    found = []
    for part in (TEXTS, TEXTS[::-1]):
        mine = part[len(part) // ranks() * rank() : len(part) // ranks() * (rank() + 1)]
        called = shaper(["x"] * len(mine), mine, completion_ids=[list(range(len(text))) for text in mine])
        found.append({"totals": list(called), "metrics": called.metrics()})
    (folder / f"shaped.{rank()}.json").write_text(json.dumps([*found, shaper.state_dict(), shaper.scale.state_dict()]))


def run(folder: Path, what: str) -> None:
    """Train, and write what was logged and what was trained, as each rank has it."""
    if what == "shaped":
        shaped(folder)
        return
    recorder = Recorder()
    trainer = BUILD[what](folder / what, [recorder])
    save_file(_trained(trainer), folder / f"{what}.{rank()}.start.safetensors")
    trainer.train(resume_from_checkpoint=True)
    save_file(_trained(trainer), folder / f"{what}.{rank()}.safetensors")
    (folder / f"{what}.{rank()}.json").write_text(json.dumps(recorder.logs))
    gathered(None)  # nobody takes the checkpoints of another method while this one still writes


def _trained(trainer: CheckpointedTrainer) -> dict[str, torch.Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: p.detach().clone().contiguous() for name, p in model.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    torch.set_num_threads(1)
    PartialState(cpu=True)  # before the first row is chosen: it decides how many ranks there are
    for name in sys.argv[2:]:
        run(Path(sys.argv[1]), name)
