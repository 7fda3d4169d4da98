"""On a model with experts `all-linear` leaves routers and experts alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from prefopt.errors import InputError
from prefopt.models.roles import POLICY, adapter_of, policy_on
from prefopt.models.targets import expert_blocks, without_routers
from prefopt.recipe.schema import LoraSpec
from tests.tiny import tiny_llama

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**COMMON, num_local_experts=4))


def qwen3() -> PreTrainedModel:
    """The first layer has no experts."""
    more = {"moe_intermediate_size": 16, "num_experts": 4, "head_dim": 8, "mlp_only_layers": [0]}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON, **more))


def qwen2() -> PreTrainedModel:
    """An expert that all tokens share, with a gate of its own."""
    more = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**COMMON, **more))


def adapted(model: PeftModel) -> set[str]:
    return {module.rpartition(".")[2] for module in adapter_of(model, POLICY).modules}


@pytest.mark.parametrize(("make", "blocks"), [(mixtral, 2), (qwen3, 1), (qwen2, 2)])
def test_routers_and_experts_are_not_adapted(make, blocks: int) -> None:
    model = policy_on(make(), LoraSpec(lora_r=2), None)
    assert len(expert_blocks(make())) == blocks
    assert adapted(model) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not [name for name in trained if "mlp" in name]


@pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning")
def test_peft_itself_would_adapt_the_router() -> None:
    """When this fails, PEFT has changed, and what is left out here should be looked at again."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    names = [name for name, _ in get_peft_model(mixtral(), config).named_parameters() if "lora_" in name]
    assert any("mlp.gate." in name for name in names) and any("mlp.experts." in name for name in names)


def test_a_model_without_experts_is_peft_s_business() -> None:
    config = LoraConfig(r=2, target_modules="all-linear")
    assert without_routers(config, tiny_llama()) is config


def test_modules_that_are_named_are_taken_as_they_are() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    assert without_routers(config, mixtral()) is config


def test_where_nothing_is_left_the_remedy_is_said() -> None:
    model = mixtral()
    for layer in model.model.layers:
        layer.self_attn = torch.nn.Identity()
    with pytest.raises(InputError, match="all-linear means nothing on MixtralForCausalLM"):
        without_routers(LoraConfig(r=2, target_modules="all-linear"), model)
