"""LoRA's forward and backward pass with as few passes over memory as its mathematics needs.

y = W x + b + s B A x. PEFT computes the sum term by term, each a tensor of the output's size; here the second term is
added in place, and the backward pass adds both parts of the input's gradient in place as well. What is computed is the
same (arXiv 2106.09685, equation 3), up to the order of additions.

Only what is plain goes this way: one active adapter of a linear layer with weights in the type of its input, without
dropout, DoRA, quantisation or autocast. Everything else stays PEFT's, call by call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913  (autograd takes positions)
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        output = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        inner = rows @ a.T
        output.addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, inner)
        ctx.scaling, ctx.shape = scaling, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        outer = outer.reshape(-1, outer.shape[-1])
        inner_gradient = (outer @ b).mul_(ctx.scaling)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (outer @ weight).addmm_(inner_gradient, a).view(ctx.shape)
        a_gradient = inner_gradient.T @ rows if ctx.needs_input_grad[3] else None
        # The transpose of outer.T @ inner: few rows times a large matrix as it lies, which no library copies first.
        b_gradient = (inner.T @ outer).mul_(ctx.scaling).T if ctx.needs_input_grad[4] else None
        return x_gradient, None, None, a_gradient, b_gradient, None


class _Fused:
    """Stands in for the forward of one layer."""

    def __init__(self, layer: LoraLinear) -> None:
        self._layer = layer
        self._other = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self._layer
        adapters = [name for name in layer.active_adapters if name in layer.lora_A]
        if args or kwargs or layer.disable_adapters or layer.merged or len(adapters) != 1:
            return self._other(x, *args, **kwargs)  # type: ignore[no-any-return]
        name = adapters[0]
        base, a, b = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
        dropout = layer.lora_dropout[name]
        plain = (
            type(base) is nn.Linear
            and x.dtype == base.weight.dtype == a.weight.dtype
            and not base.weight.requires_grad
            and b.bias is None
            and (isinstance(dropout, nn.Identity) or not dropout.training or dropout.p == 0)
            and not layer.lora_variant.get(name)
            and not torch.is_autocast_enabled(x.device.type)
        )
        if not plain:
            return self._other(x)  # type: ignore[no-any-return]
        return _FusedLora.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, base.weight, base.bias, a.weight, b.weight, layer.scaling[name]
        )


@contextmanager
def fused_lora(model: nn.Module) -> Iterator[None]:
    """Within the block the LoRA layers of a model compute as above wherever they can.

    Forward and backward pass belong into the same block: recomputed activations ask for the same layers again.
    """
    layers = [module for module in model.modules() if type(module) is LoraLinear and "forward" not in vars(module)]
    for layer in layers:
        layer.forward = _Fused(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
