"""The operations a stage reports against those that torch counts while the trainer really trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaForCausalLM, TrainingArguments

from prefopt.models.flops import flops_model
from prefopt.models.generate import Sampled
from prefopt.models.heads import new_reward_model
from prefopt.pipeline.cost import (
    answering_cost,
    completion_share,
    group_cost,
    kto_cost,
    mean_context,
    sampling_cost,
    total,
    training_cost,
)
from prefopt.recipe.options.costs import RepetitionCost
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.flags import WeightedCost
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from prefopt.trainers.pretrain import LanguageModelingCollator, PretrainTrainer
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
from tests.tiny import tiny_llama, tiny_tokenizer

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 8,  # what is proved before the first step is not counted
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
    "include_num_input_tokens_seen": "non_padding",
}


def base() -> LlamaForCausalLM:
    return tiny_llama(layers=6)  # autograd saves the first layer's input gradient, which is a sixth here


def ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, 300, (count,), generator=generator).tolist()


def pairs() -> list[dict[str, list[int]]]:
    """Rows of one length, so that there is no padding to disagree about, and each too long to go with another."""
    return [
        {"prompt_ids": ids(200, n), "chosen_ids": ids(40, n + 50), "rejected_ids": ids(40, n + 90)} for n in range(12)
    ]


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(outer: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    # A fused kernel computes the scores again, one product of five, which the formulas leave out.
    return int(sdpa_backward_flop_count(outer, query, key, value) * 4 // 5)


# What torch leaves out by itself.
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counted(trainer: Any) -> float:
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        trainer.train()
    return float(counter.get_total_flops())


def pretrain(folder: Path) -> tuple[float, dict[str, float]]:
    model = base().requires_grad_(True)
    rows = [{"input_ids": ids(50, n), "labels": ids(50, n)} for n in range(12)]
    args = TrainingArguments(output_dir=str(folder), **SHARED)
    trainer = PretrainTrainer(model=model, args=args, data_collator=LanguageModelingCollator(0), train_dataset=rows)
    return counted(trainer), training_cost(trainer, full=True)


def sft(folder: Path) -> tuple[float, dict[str, float]]:
    rows = [{"prompt_ids": pair["prompt_ids"], "completion_ids": pair["chosen_ids"]} for pair in pairs()]
    args = SFTConfig(output_dir=str(folder), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **SHARED)
    trainer = SFTTrainer(
        model=get_peft_model(base(), LORA, adapter_name="policy"),
        args=args,
        train_dataset=language_modeling_rows(rows),
        processing_class=tiny_tokenizer(),
    )
    return counted(trainer), training_cost(trainer)


def own_sft(folder: Path) -> tuple[float, dict[str, float]]:
    """With sequence unlikelihood, of which half of the steps have the sampling and the passes."""
    rows = [{"prompt_ids": pair["prompt_ids"][:60], "completion_ids": pair["chosen_ids"]} for pair in pairs()]
    args = SFTConfig(output_dir=str(folder), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **SHARED)
    again = WeightedCost(rule_cost(RepetitionCost(cost="repetition", ngram=2)), 1.0)
    trainer = SFTTrainer(
        model=get_peft_model(base(), LORA, adapter_name="policy"),
        args=args,
        train_dataset=language_modeling_rows(rows),
        processing_class=tiny_tokenizer(),
        sequence_unlikelihood=SequenceUnlikelihood([again], every=2, max_new_tokens=40),
    )
    return counted(trainer), training_cost(trainer)


def reward(folder: Path) -> tuple[float, dict[str, float]]:
    model = new_reward_model(base(), LORA, None)
    trainer = RewardTrainer(
        model,
        RewardConfig(output_dir=str(folder), **SHARED),
        train_dataset=pairs(),
        processing_class=tiny_tokenizer(),
    )
    return counted(trainer), training_cost(trainer, head=0.0)


def dpo(folder: Path) -> tuple[float, dict[str, float]]:
    trainer = DPOTrainer(
        get_peft_model(base(), LORA, adapter_name="policy"),
        DPOConfig(output_dir=str(folder), per_device_eval_batch_size=1, **SHARED),
        train_dataset=pairs(),
        processing_class=tiny_tokenizer(),
    )
    found = counted(trainer)
    return found, training_cost(trainer, head=completion_share(pairs()), reference=True)


def kto(folder: Path) -> tuple[float, dict[str, float]]:
    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["chosen_ids"], "label": number % 2 == 0}
        for number, pair in enumerate(pairs())
    ]
    trainer = KTOTrainer(
        get_peft_model(base(), LORA, adapter_name="policy"),
        KTOConfig(output_dir=str(folder), max_length=None, **SHARED),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    return counted(trainer), kto_cost(trainer, estimates_kl=True)


def groups(config: Any, build: Any, folder: Path) -> tuple[float, dict[str, float]]:
    shared = {
        name: value for name, value in SHARED.items() if name not in ("num_train_epochs", "remove_unused_columns")
    }
    args = config(
        output_dir=str(folder), total_episodes=64, rollout_batch_size=16, num_generations=4, num_iterations=2,
        max_completion_length=40, min_new_tokens=40, normalise="none", max_length=128,
        **{**shared, "include_num_input_tokens_seen": "no"},
    )  # fmt: skip
    trainer = build(
        get_peft_model(base(), LORA, adapter_name="policy"), args, reward=lambda prompts, texts: [1.0] * len(texts),
        train_dataset=[{"prompt": (), "prompt_ids": ids(60, number)} for number in range(4)],
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    return counted(trainer), group_cost(trainer, reward_passes=0)


def grpo(folder: Path) -> tuple[float, dict[str, float]]:
    return groups(GRPOConfig, GRPOTrainer, folder)


def rloo(folder: Path) -> tuple[float, dict[str, float]]:
    return groups(RLOOConfig, RLOOTrainer, folder)


@pytest.mark.parametrize("method", [pretrain, sft, own_sft, reward, dpo, kto, grpo, rloo])
def test_what_training_costs_is_what_torch_counts(tmp_path: Path, method: Any) -> None:
    found, cost = method(tmp_path)
    tokens = {pretrain: 4800, sft: 23040, own_sft: 9600, kto: 23040, grpo: 6400, rloo: 6400}
    assert cost["tokens"] == tokens.get(method, 26880)
    assert cost["flops"] == pytest.approx(found, rel=0.1)


def test_sampling_costs_the_prompt_once_and_a_token_for_every_token() -> None:
    flops = flops_model(base())
    alone = sampling_cost(flops, [[0] * 10], [5])
    assert sampling_cost(flops, [[0] * 10] * 3, [5] * 3) == pytest.approx(3 * alone)
    samples = [Sampled((1,) * 5, "", True)]
    again = answering_cost(flops, [[0] * 10], samples, forwards=2)
    assert again["tokens"] == 5 and again["flops"] == pytest.approx(alone + 2 * flops.forward(15, 15))
    assert total([again, {"flops": 1.0}])["flops"] == again["flops"] + 1


def test_the_context_of_a_token_is_that_of_its_row() -> None:
    assert mean_context([10, 10]) == 10 and mean_context([1, 9]) == pytest.approx(8.2) and mean_context([]) == 0
