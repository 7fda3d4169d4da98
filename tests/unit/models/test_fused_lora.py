"""LoRA in place computes what PEFT computes, and leaves to PEFT what it cannot."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from prefopt.models import fused_lora as module
from prefopt.models.fused_lora import fused_lora


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def net(**more: object) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["first", "second"], init_lora_weights=False, **more)
    return get_peft_model(Net().double(), config, autocast_adapter_dtype=False).double()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each layer that went the fused way."""
    found: list[int] = []
    apply = module._FusedLora.apply

    def counted(*args: object) -> object:
        found.append(1)
        return apply(*args)

    monkeypatch.setattr(module._FusedLora, "apply", counted)
    return found


def passed(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.clone().requires_grad_()
    output = model(x)
    output.sin().sum().backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    assert x.grad is not None
    return output, {"input": x.grad, **found}


X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_output_and_gradients_are_those_of_peft(calls: list[int]) -> None:
    model = net()
    expected, gradients = passed(model, X)
    assert not calls
    with fused_lora(model):
        found, others = passed(model, X)
    assert len(calls) == 2 and torch.allclose(found, expected, rtol=1e-12)
    assert others.keys() == gradients.keys() and len(others) == 5
    assert all(torch.allclose(others[name], gradients[name], rtol=1e-10, atol=1e-12) for name in others)
    assert passed(model, X)[0].equal(expected) and len(calls) == 2  # and afterwards PEFT's layers are there again


def disabled(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


def merged(model: PeftModel) -> None:
    model.merge_adapter()


def two_active(model: PeftModel) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False))
    model.double().base_model.set_adapter(["default", "other"])


def other_dtype(model: PeftModel) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            layer.lora_A.float()
            layer.lora_B.float()


@pytest.mark.parametrize("change", [disabled, merged, two_active, other_dtype])
def test_what_is_not_plain_stays_with_peft(calls: list[int], change) -> None:
    model = net()
    change(model)
    expected = model(X)
    with fused_lora(model):
        assert model(X).equal(expected)
    assert not calls


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_variants_and_dropout_stay_with_peft(calls: list[int], more: dict[str, object]) -> None:
    model = net(**more).train()
    with fused_lora(model):
        model(X)
    assert not calls
    with fused_lora(model.eval()):
        model(X)
    assert len(calls) == (2 if "lora_dropout" in more else 0)  # without training there is nothing to drop


def test_blocks_within_blocks_change_nothing(calls: list[int]) -> None:
    model = net()
    with fused_lora(model):
        with fused_lora(model):
            pass
        model(X)
    assert len(calls) == 2


def test_only_what_needs_a_gradient_gets_one(calls: list[int]) -> None:
    model = net()
    model.requires_grad_(False)
    with fused_lora(model):
        x = X.clone().requires_grad_()
        model(x).sum().backward()
    assert x.grad is not None and len(calls) == 2
    assert all(parameter.grad is None for parameter in model.parameters())
