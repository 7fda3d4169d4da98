from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from prefopt.models.flops import FlopsModel, _attention_layers, _experts, flops_model
from tests.tiny import tiny_llama, tiny_policy

ROWS, LENGTH = 3, 40
TOKENS = ROWS * LENGTH


def llama(kv_heads: int = 4, tied: bool = True, layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=12,  # not hidden_size / heads
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config._attn_implementation = "eager"  # the counter has no formula for the CPU's fused kernel
    return LlamaForCausalLM(config)


def lora(model: PreTrainedModel) -> PeftModel:
    model.requires_grad_(False)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def step(model: PreTrainedModel | PeftModel) -> None:
    ids = torch.randint(3, 100, (ROWS, LENGTH))
    # The sum of logits costs no matrix product, and neither does a loss on them.
    model(input_ids=ids, use_cache=False).logits.square().sum().backward()


@pytest.fixture(params=[(4, True), (2, True), (1, False)], ids=["tied", "grouped", "grouped-untied"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    return llama(*request.param)


def close(formula: float, counter: int, within: float = 0.01) -> bool:
    return abs(formula / counter - 1) <= within


def test_forward(model: LlamaForCausalLM) -> None:
    ids = torch.randint(3, 100, (ROWS, LENGTH))
    flops = flops_model(model)
    with torch.no_grad():
        assert close(flops.forward(TOKENS, LENGTH), counted(lambda: model(ids, use_cache=False)))
        some = counted(lambda: model(ids, use_cache=False, logits_to_keep=5))
    assert close(flops.forward(TOKENS, LENGTH, head_tokens=ROWS * 5), some)


@pytest.mark.parametrize("recompute", [False, True])
def test_full_training_step(model: LlamaForCausalLM, recompute: bool) -> None:
    model.train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    formula = flops_model(model).train(TOKENS, LENGTH, full=True, recompute=recompute)
    # PyTorch stops recomputing a layer before its last matrix, whose result nothing needs.
    assert close(formula, counted(lambda: step(model)), within=0.1 if recompute else 0.01)


@pytest.mark.parametrize("recompute", [False, True])
def test_lora_step(model: LlamaForCausalLM, recompute: bool) -> None:
    peft = lora(model).train()
    if recompute:
        peft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    formula = flops_model(peft).train(TOKENS, LENGTH, full=False, recompute=recompute)
    # The first layer's matrices pass no gradient on to a frozen embedding.
    assert close(formula, counted(lambda: step(peft)), within=0.1)


@pytest.mark.parametrize("adapted", [False, True])
def test_sampling_with_a_cache(model: LlamaForCausalLM, adapted: bool) -> None:
    sampled = (lora(model) if adapted else model).eval()
    ids = torch.randint(3, 100, (ROWS, 10))
    mask = torch.ones_like(ids)

    def generate() -> None:
        out = sampled.generate(input_ids=ids, attention_mask=mask, min_new_tokens=16, max_new_tokens=16)
        assert out.shape == (ROWS, 26)

    assert close(ROWS * flops_model(sampled).sample(10, 16), counted(generate))


def test_parameters_are_those_that_a_token_passes_through() -> None:
    layer = 32 * 48 * 2 + 32 * 24 * 2 + 3 * 32 * 80
    assert flops_model(llama(2)) == FlopsModel(matrices=3 * layer, head=3200, adapters=0, layers=3, width=48)
    assert flops_model(llama(2, tied=False)) == flops_model(llama(2))
    peft = lora(llama(2))
    adapters = sum(parameter.numel() for parameter in peft.parameters() if parameter.requires_grad)
    assert flops_model(peft) == replace(flops_model(llama(2)), adapters=adapters)


def test_only_active_adapters_count() -> None:
    policy = tiny_policy()
    alone = flops_model(policy)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    policy.add_adapter("other", config)
    assert flops_model(policy) == alone
    policy.set_adapter("other")
    assert flops_model(policy) == replace(alone, adapters=2 * alone.adapters)
    assert replace(alone, adapters=0) == flops_model(tiny_llama())


def test_an_adapter_on_the_head_and_a_saved_copy_of_it() -> None:
    plain = flops_model(llama(tied=False))
    targeted = get_peft_model(llama(tied=False), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"]))
    assert flops_model(targeted) == replace(plain, adapters=4 * (32 + 100))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert flops_model(get_peft_model(llama(tied=False), config)) == replace(plain, adapters=3 * 4 * (32 + 48))


def test_other_shapes_of_linear_layers() -> None:
    config = GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    assert flops_model(GPT2LMHeadModel(config)) == FlopsModel(2 * 12 * 32 * 32, 3200, 0, 2, 32)


@pytest.mark.parametrize("experts", [4, 8])
def test_of_experts_only_the_active_ones_count(experts: int) -> None:
    config = MixtralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
        num_experts_per_tok=2,
    )
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    mixtral = MixtralForCausalLM(config).eval()
    flops = flops_model(mixtral)
    assert flops.matrices == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 32 * experts + 2 * 3 * 32 * 48)
    ids = torch.randint(3, 100, (ROWS, LENGTH))
    with torch.no_grad():
        assert close(flops.forward(TOKENS, LENGTH), counted(lambda: mixtral(ids, use_cache=False)))


def test_shared_experts_and_heads_of_two_sizes() -> None:
    config = DeepseekV3Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=12,
    )
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    deepseek = DeepseekV3ForCausalLM(config).eval()
    flops = flops_model(deepseek)
    assert flops.width == 4 * (24 + 12) // 2
    ids = torch.randint(3, 100, (ROWS, LENGTH))
    with torch.no_grad():
        assert close(flops.forward(TOKENS, LENGTH), counted(lambda: deepseek(ids, use_cache=False)))


def test_layers_without_attention_over_positions_have_none() -> None:
    kinds = ["linear_attention", "full_attention", "sliding_attention", "conv"]
    assert _attention_layers(SimpleNamespace(layer_types=kinds, num_hidden_layers=4)) == 2


def test_experts_of_unknown_number_are_refused() -> None:
    with pytest.raises(ValueError, match="SimpleNamespace does not say"):
        _experts(SimpleNamespace(num_experts=4))


def test_costs_without_attention_are_linear_in_tokens() -> None:
    flops = replace(flops_model(tiny_policy()), adapters=0)
    weights = flops.matrices + flops.head
    for tokens in (0, 1, 7, 700):
        assert flops.forward(tokens, 0) == 2 * weights * tokens
        assert flops.train(tokens, 0, full=True, recompute=False) == 6 * weights * tokens
        assert flops.train(tokens, 0, full=False, recompute=False) == 4 * weights * tokens
        recomputed = flops.train(tokens, 0, full=False, recompute=True)
        assert recomputed == (4 * weights + 2 * flops.matrices) * tokens
    assert flops.forward(10, 0, head_tokens=3) == 20 * flops.matrices + 6 * flops.head
    assert flops.train(10, 0, True, False, head_tokens=3) == 60 * flops.matrices + 18 * flops.head


def test_attention_is_linear_in_context() -> None:
    flops = flops_model(tiny_policy())
    attention = 4 * flops.layers * flops.width * 10
    assert flops.forward(10, 8) - flops.forward(10, 0) == 8 * attention
    assert flops.train(10, 8, False, False) - flops.train(10, 0, False, False) == 3 * 8 * attention
    assert flops.train(10, 8, False, True) - flops.train(10, 0, False, True) == 4 * 8 * attention


def test_sampling_computes_every_position_but_the_last() -> None:
    flops = flops_model(tiny_policy())
    assert flops.sample(9, 0) == 0
    assert flops.sample(9, 1) == flops.forward(9, 9, head_tokens=1)
    assert flops.sample(9, 2) == flops.sample(9, 1) + flops.forward(1, 10)
    assert flops.sample(9, 3) == flops.sample(9, 2) + flops.forward(1, 11)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda flops: flops.forward(-1, 0),
        lambda flops: flops.forward(1, -1),
        lambda flops: flops.forward(1, 0, head_tokens=-1),
        lambda flops: flops.forward(1, 0, head_tokens=2),
        lambda flops: flops.forward(float("nan"), 0),
        lambda flops: flops.backward(-1, 0, full=True),
        lambda flops: flops.train(1, -1, True, False),
        lambda flops: flops.sample(-1, 1),
        lambda flops: flops.sample(1, -1),
    ],
)
def test_impossible_numbers_are_refused(wrong: Callable[[FlopsModel], float]) -> None:
    with pytest.raises(ValueError, match=r"negative|through the head"):
        wrong(FlopsModel(10, 5, 1, 2, 4))
