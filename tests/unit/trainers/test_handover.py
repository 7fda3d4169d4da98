"""Chains of stages whose adapters change shape: what starts, what is trained, what is saved, what is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback

from prefopt.errors import InputError
from prefopt.losses.logprobs import completion_logps
from prefopt.models.batches import padded_pairs
from prefopt.models.heads import RewardModel, hang_reward, new_reward_model
from prefopt.models.roles import (
    POLICY,
    REWARD,
    START,
    activate_trained,
    lora_config,
    policy_on,
    reference_active,
    save_adapter,
)
from prefopt.recipe.schema import LoraSpec, StageLoraSpec
from prefopt.trainers.callbacks import KeepAdapters
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from prefopt.trainers.pairs import PairTrainer
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.reward import RewardConfig, RewardTrainer
from prefopt.trainers.trl import SFTConfig, SFTTrainer, language_modeling_rows
from tests.tiny import VOCABULARY, random_rows, tiny_llama, tiny_tokenizer

SMALL = LoraSpec(lora_r=3, lora_alpha=6)
LARGE = LoraSpec(lora_r=5, lora_alpha=10)
OTHER = LoraSpec(lora_r=4, lora_alpha=8, lora_target_modules=["q_proj", "down_proj"])
IDS = torch.arange(3, 43).reshape(2, 20) % VOCABULARY
PROMPTS = [{"prompt": text} for text in ("the lamp", "the chair costs", "is", "nine euro")]


def options(directory: Path, **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "output_dir": str(directory / "checkpoints"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,  # TRL's own default is True
        "report_to": [],
        "disable_tqdm": True,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    return {**fields, **more}


def dpo(directory: Path, model: PeftModel, callbacks: list[TrainerCallback] | None = None, **more: Any) -> DPOTrainer:
    args = DPOConfig(**options(directory, **more))
    rows = random_rows(16)
    return DPOTrainer(model, args, train_dataset=rows, processing_class=tiny_tokenizer(), callbacks=callbacks)


def sft(directory: Path, model: PeftModel, **more: Any) -> SFTTrainer:
    rows = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in random_rows(16)]
    args = SFTConfig(**options(directory, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **more))
    data = language_modeling_rows(rows)
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tiny_tokenizer())


def ppo(directory: Path, model: PeftModel, **more: Any) -> PPOTrainer:
    fields = options(directory, total_episodes=24, rollout_batch_size=8, max_new_tokens=6, max_length=64, **more)
    del fields["max_steps"]
    args = PPOConfig(**{**fields, "num_ppo_epochs": 2, "num_mini_batches": 1})
    return PPOTrainer(
        model,
        args,
        reward=lambda prompts, completions: [float(text.count("e")) for text in completions],
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
    )


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def plain(folder: Path) -> PeftModel:
    """As a user of PEFT loads it: the base and one folder."""
    return PeftModel.from_pretrained(tiny_llama(), folder)


def chain(tmp_path: Path, *shapes: tuple[str, LoraSpec]) -> list[tuple[Path, Tensor, Tensor]]:
    """Stages one after the other; of each its folder, the logits it began with, and those it ended with."""
    done: list[tuple[Path, Tensor, Tensor]] = []
    for number, (kind, shape) in enumerate(shapes):
        init = done[-1][0] if done else None
        reference = kind != "sft"
        model = policy_on(tiny_llama(), shape, init, reference=reference, reshape=init is not None)
        first = logits(model)
        directory = tmp_path / str(number)
        {"sft": sft, "dpo": dpo, "ppo": ppo}[kind](directory, model).train()
        activate_trained(model, POLICY)
        save_adapter(model, POLICY, directory / "adapter", "tiny")
        done.append((directory / "adapter", first, logits(model)))
    return done


CHAINS = {
    "sft dpo dpo": (("sft", SMALL), ("dpo", LARGE), ("dpo", OTHER)),
    "sft sft ppo": (("sft", OTHER), ("sft", SMALL), ("ppo", LARGE)),
    "dpo ppo in one shape": (("dpo", SMALL), ("ppo", SMALL)),
}


@pytest.mark.parametrize("stages", CHAINS.values(), ids=CHAINS.keys())
def test_each_stage_starts_where_the_one_before_ended_and_is_complete(
    tmp_path: Path, stages: tuple[tuple[str, LoraSpec], ...]
) -> None:
    before = logits(tiny_llama())
    for folder, first, last in chain(tmp_path, *stages):
        assert torch.allclose(first, before, atol=2e-5, rtol=0)
        assert torch.allclose(logits(plain(folder)), last, atol=2e-5, rtol=0)
        assert (last - first).abs().max() > 1e-3, "it was trained"
        before = last


def stacked(tmp_path: Path, shape: LoraSpec = LARGE) -> PeftModel:
    first = policy_on(tiny_llama(), SMALL, None)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(3))
    save_adapter(first, POLICY, tmp_path / "init", "tiny")
    return policy_on(tiny_llama(), shape, tmp_path / "init", reshape=True)


@pytest.mark.parametrize("make", [dpo, ppo])
def test_a_policy_that_is_not_its_reference_does_not_begin(tmp_path: Path, make: Any) -> None:
    model = stacked(tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"lora_B.{POLICY}" in name:
                parameter.normal_(std=0.5)
    with pytest.raises(InputError, match="before the first step"):
        make(tmp_path, model).train()
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


class Stop(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("make", [dpo, ppo, sft])
def test_what_is_interrupted_on_a_stack_ends_as_what_is_not(tmp_path: Path, make: Any) -> None:
    whole = make(tmp_path / "whole", stacked(tmp_path))
    whole.train()
    cut = make(tmp_path / "cut", stacked(tmp_path))
    cut.add_callback(Stop())
    cut.train()
    resumed = make(tmp_path / "cut", stacked(tmp_path))
    resumed.train(resume_from_checkpoint=True)
    models = [trainer.adapted_model() for trainer in (whole, resumed, cut)]
    tensors = [{name: tensor for name, tensor in model.named_parameters() if f".{POLICY}." in name} for model in models]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert any(not torch.equal(tensors[0][name], tensors[2][name]) for name in tensors[0])


def test_adapters_that_are_kept_are_complete_and_checkpoints_are_not(tmp_path: Path) -> None:
    model = stacked(tmp_path)
    trained = dpo(tmp_path, model, [KeepAdapters(tmp_path, POLICY)])
    trained.train()
    last = plain(tmp_path / "adapters" / "step-4")
    assert last.peft_config["default"].r == SMALL.lora_r + LARGE.lora_r
    assert torch.allclose(logits(last), logits(model), atol=1e-5, rtol=0)
    checkpoint = plain(tmp_path / "checkpoints" / "checkpoint-4")
    assert checkpoint.peft_config["default"].r == LARGE.lora_r
    trained.save_model(str(tmp_path / "saved"))
    assert torch.allclose(logits(plain(tmp_path / "saved")), logits(model), atol=1e-5, rtol=0)


def test_the_dpo_reference_on_a_stack_is_the_stage_it_starts_from(tmp_path: Path) -> None:
    model = stacked(tmp_path)
    trained = dpo(tmp_path, model)
    trained.train()
    alone = plain(tmp_path / "init").eval()
    batch = padded_pairs(trained.data_collator(random_rows(16)[:4]))
    with reference_active(model), torch.no_grad():
        expected = [
            completion_logps(net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
                             batch["input_ids"], batch["completion_mask"])
            for net in (alone, model)
        ]  # fmt: skip
    assert torch.allclose(*expected, atol=1e-4)
    rows = list(trained.train_dataset)[:4]
    said = [row["reference_chosen_logps"] for row in rows] + [row["reference_rejected_logps"] for row in rows]
    assert torch.allclose(torch.tensor(said), expected[0], atol=1e-3)


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_ppo_on_a_stack_trains_policy_and_value_alone(tmp_path: Path, value: str) -> None:
    model = stacked(tmp_path)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = ppo(tmp_path, model, value=value)
    trained.train()
    changed = {
        name.split(".")[-2] for name, parameter in model.named_parameters() if name in before
        and not torch.equal(parameter, before[name])
    }  # fmt: skip
    assert changed == {POLICY}
    assert START in model.peft_config and trained.model.shared == (value == "shared")


def reward(directory: Path, model: RewardModel, **more: Any) -> PairTrainer:
    args = RewardConfig(**options(directory, **more))
    return RewardTrainer(model, args, train_dataset=random_rows(16), processing_class=tiny_tokenizer())


def test_a_reward_model_on_a_stack_is_saved_whole_with_its_head(tmp_path: Path) -> None:
    stacked(tmp_path)
    model = new_reward_model(tiny_llama(), lora_config(OTHER), tmp_path / "init", reshape=True)
    assert START in model.peft.peft_config
    trained = reward(tmp_path, model)
    trained.train()
    trained.save_weights(tmp_path / "adapter")
    mask = torch.ones_like(IDS)
    expected = model.eval()(IDS, mask)
    peft, head = hang_reward(tiny_llama(), tmp_path / "adapter", REWARD)
    assert torch.allclose(RewardModel(peft, head).eval()(IDS, mask), expected, atol=1e-5)
    again = reward(tmp_path, new_reward_model(tiny_llama(), lora_config(OTHER), tmp_path / "init", reshape=True))
    again.load_weights(tmp_path / "checkpoints" / "checkpoint-4")
    assert torch.allclose(again.model.eval()(IDS, mask), expected, atol=1e-6)


def test_a_policy_of_a_stage_without_a_shape_of_its_own_keeps_that_of_the_stage_it_starts_from(tmp_path: Path) -> None:
    save_adapter(stacked(tmp_path), POLICY, tmp_path / "flat", "tiny")
    model = policy_on(tiny_llama(), LoraSpec(), tmp_path / "flat")
    assert START not in model.peft_config and model.peft_config[POLICY].r == SMALL.lora_r + LARGE.lora_r


def test_keys_of_a_stage_s_lora_that_are_left_out_are_the_recipe_s() -> None:
    recipe = LoraSpec(lora_r=3, lora_alpha=7, lora_dropout=0.1, lora_target_modules=["q_proj"])
    assert StageLoraSpec().over(recipe) == recipe
    found = StageLoraSpec(lora_r=8, lora_target_modules=["v_proj"]).over(recipe)
    assert found == LoraSpec(lora_r=8, lora_alpha=7, lora_dropout=0.1, lora_target_modules=["v_proj"])
