"""A stack of two adapters and the one that it is saved as compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights
from torch import Tensor

from prefopt.errors import InputError
from prefopt.models.actor_critic import VALUE
from prefopt.models.flatten import Adapter, flattened, read_adapter
from prefopt.models.roles import (
    POLICY,
    REFERENCE,
    REWARD,
    START,
    adapter_of,
    adapter_on,
    policy_on,
    reference_active,
    save_adapter,
    stack_of,
)
from prefopt.recipe.schema import LoraSpec
from tests.tiny import VOCABULARY, tiny_llama

ALL = "all-linear"
SUBSET = ["q_proj", "down_proj"]
REGEX = r".*layers\.1\.(self_attn\.q_proj|mlp\.up_proj)"
IDS = torch.arange(3, 43).reshape(2, 20) % VOCABULARY


def lora(r: int, alpha: float, targets: str | list[str] = ALL, **more: object) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=targets, **more)


def moved(model: PeftModel, adapter: str, seed: int) -> PeftModel:
    """As if it had been trained: no B is 0 any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1)
    return model


def start(directory: Path, config: LoraConfig, dtype: torch.dtype = torch.float32) -> Path:
    model = moved(get_peft_model(tiny_llama().to(dtype), config, adapter_name=POLICY), POLICY, 7)
    save_adapter(model.to(dtype), POLICY, directory, "tiny")
    return directory


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


SHAPES = {
    "higher rank": (lora(4, 8), lora(6, 12)),
    "lower rank": (lora(6, 12), lora(2, 4)),
    "scalings that are no powers of two": (lora(4, 6), lora(3, 10)),
    "all to a subset": (lora(4, 8), lora(4, 8, SUBSET)),
    "a subset to all": (lora(4, 8, SUBSET), lora(3, 6)),
    "disjoint": (lora(4, 8, ["q_proj"]), lora(4, 8, ["v_proj", "up_proj"])),
    "a pattern on a list": (lora(4, 8, SUBSET), lora(3, 6, REGEX)),
    "a list on a pattern": (lora(4, 8, REGEX), lora(3, 6, SUBSET)),
    "rank-stabilised below": (lora(4, 8, use_rslora=True), lora(3, 6)),
    "rank-stabilised above": (lora(4, 8), lora(9, 6, use_rslora=True)),
    "ranks by module": (lora(4, 8, rank_pattern={"q_proj": 7}, alpha_pattern={"q_proj": 3}), lora(5, 10)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_the_one_that_is_saved_computes_what_the_stack_does(
    tmp_path: Path, shapes: tuple[LoraConfig, LoraConfig], dtype: torch.dtype, tolerance: float
) -> None:
    below, above = shapes
    init = start(tmp_path / "init", below, dtype)
    stack = adapter_on(tiny_llama().to(dtype), above, init, POLICY, reshape=True).to(dtype)
    assert stack_of(stack, POLICY) == [START, POLICY]
    first = logits(PeftModel.from_pretrained(tiny_llama().to(dtype), init).to(dtype))
    assert torch.equal(logits(stack), first), "nothing is changed before it is trained"
    moved(stack, POLICY, 8)
    expected = logits(stack)
    assert (expected - first).abs().max() > 0.01
    save_adapter(stack, POLICY, tmp_path / "flat", "tiny")
    alone = PeftModel.from_pretrained(tiny_llama().to(dtype), tmp_path / "flat").to(dtype)
    # Logits of a few units: the tolerance is of their own size.
    assert float((logits(alone) - expected).abs().max() / expected.abs().max()) < tolerance


def test_a_scaling_that_both_have_is_kept_and_the_weights_are_bits_of_both(tmp_path: Path) -> None:
    init = start(tmp_path / "init", lora(4, 8))
    stack = moved(adapter_on(tiny_llama(), lora(6, 12), init, POLICY, reshape=True), POLICY, 8)
    one = flattened(read_adapter(init), adapter_of(stack, POLICY))
    assert (one.config.r, one.config.lora_alpha, one.config.rank_pattern) == (10, 20, {})
    assert one.config.target_modules == sorted(adapter_of(stack, POLICY).config.target_modules)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    parts = (read_adapter(init).tensors[key], adapter_of(stack, POLICY).tensors[key])
    assert torch.equal(one.tensors[key], torch.cat(parts, dim=1))


def test_the_scaling_is_a_power_of_two_or_one_in_every_module(tmp_path: Path) -> None:
    for name, (below, above) in SHAPES.items():
        init = start(tmp_path / name, below)
        stack = adapter_on(tiny_llama(), above, init, POLICY, reshape=True)
        one = flattened(read_adapter(init), adapter_of(stack, POLICY))
        assert {one.scaling(module) for module in one.modules} <= {1.0, 2.0}, name
        assert set(one.modules) == set(read_adapter(init).modules) | set(adapter_of(stack, POLICY).modules)


@pytest.mark.parametrize("alpha", [8.0, 16.0, 6.0])
def test_the_same_ranks_are_a_copy_whatever_the_scaling(tmp_path: Path, alpha: float) -> None:
    init = start(tmp_path / "init", lora(4, 8))
    spec = LoraSpec(lora_r=4, lora_alpha=alpha, lora_dropout=0.25)
    model = policy_on(tiny_llama(), spec, init, reshape=True)
    assert START not in model.peft_config and REFERENCE in model.peft_config
    assert model.peft_config[POLICY].lora_alpha == alpha and model.peft_config[POLICY].lora_dropout == 0.25
    policy = logits(model)
    with reference_active(model):
        assert (logits(model) - policy).abs().max() < (1e-5 if alpha == 6.0 else 1e-9)


def test_only_the_upper_adapter_is_trained_also_after_the_reference_was_active(tmp_path: Path) -> None:
    init = start(tmp_path / "init", lora(4, 8))
    model = policy_on(tiny_llama(), LoraSpec(lora_r=6), init, reshape=True)
    for _ in range(2):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained and all(f".{POLICY}." in name for name in trained)
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)
        assert any(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.grad is not None)
        moved(model, POLICY, 9)
        policy = logits(model)
        with reference_active(model):
            base = PeftModel.from_pretrained(tiny_llama(), init)
            assert torch.equal(logits(model), logits(base))
        assert torch.equal(logits(model), policy)


def test_a_checkpoint_holds_the_upper_adapter_alone(tmp_path: Path) -> None:
    init = start(tmp_path / "init", lora(4, 8))
    model = moved(policy_on(tiny_llama(), LoraSpec(lora_r=6), init, reshape=True), POLICY, 3)
    save_adapter(model, POLICY, tmp_path / "checkpoint", "tiny", complete=False)
    assert set(read_adapter(tmp_path / "checkpoint").ranks.values()) == {6}


@pytest.mark.parametrize("name", [POLICY, REFERENCE, REWARD, START, VALUE])
def test_the_name_of_an_adapter_is_in_no_key_of_its_file(tmp_path: Path, name: str) -> None:
    model = moved(get_peft_model(tiny_llama(), lora(4, 8), adapter_name=name), name, 1)
    save_adapter(model, name, tmp_path, "tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    keys = load_peft_weights(str(tmp_path), device="cpu")
    assert keys and all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lora(4, 8, use_dora=True), "use_dora"),
        (lora(4, 8, layer_replication=[(0, 2), (1, 2)]), "layer_replication"),
        (lora(4, 8, bias="lora_only"), "bias=lora_only"),
        (lora(4, 8, ["q_proj", "embed_tokens"]), "lora_embedding_A"),
        (lora(4, 8, modules_to_save=["norm"]), "norm.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings=True`:UserWarning")
def test_what_is_no_pair_of_matrices_is_refused_with_a_remedy(config: LoraConfig, said: str) -> None:
    lower = adapter_of(get_peft_model(tiny_llama(), config, adapter_name=POLICY), POLICY)
    upper = adapter_of(get_peft_model(tiny_llama(), lora(2, 4), adapter_name=POLICY), POLICY)
    with pytest.raises(InputError, match="cannot be made one") as caught:
        flattened(lower, upper)
    assert said in caught.value.message and caught.value.remedy


def test_half_precision_is_not_rounded_when_it_is_scaled() -> None:
    def adapter(alpha: float) -> Adapter:
        model = moved(get_peft_model(tiny_llama(), lora(4, alpha), adapter_name=POLICY), POLICY, 1)
        whole = adapter_of(model, POLICY)
        return Adapter(whole.config, {key: tensor.bfloat16() for key, tensor in whole.tensors.items()})

    one = flattened(adapter(6), adapter(10))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert torch.equal(one.tensors[key][:, :4], adapter(6).tensors[key].float() * 1.5)
