"""Products by oneDNN against torch's own: the same numbers, the same errors, and gone when they are switched off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from prefopt.models import products

PRODUCTS = {
    "product": lambda x, w, b: x @ w.T,
    "linear": lambda x, w, b: linear(x, w),
    "linear with bias": linear,
    "rows of rows": lambda x, w, b: linear(x.view(2, -1, x.shape[1]), w, b),
    "turned": lambda x, w, b: (w @ x.T).T,
    "scaled sum": lambda x, w, b: torch.addmm(b, x, w.T, beta=0.5, alpha=2.0),
    "sum of matrices": lambda x, w, b: torch.addmm(torch.ones(len(x), len(w), dtype=x.dtype), x, w.T),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(products.SWITCH, "onednn")
    monkeypatch.setattr(products, "LARGE", 1 << 12)
    if not products.use_quick_products():
        pytest.skip("torch was built without MKL or oneDNN")
    yield
    products.use_torch_products()


def operands(dtype: torch.dtype, rows: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 40), (56, 40), (56,))]
    return tuple(each.requires_grad_() for each in found)  # type: ignore[return-value]


def results(name: str, dtype: torch.dtype) -> list[Tensor]:
    """The product and its gradients."""
    given = operands(dtype)
    product = PRODUCTS[name](*given)
    product.square().sum().backward()
    return [product.detach(), *(each.grad for each in given if each.grad is not None)]


def by_onednn(given: Sequence[Tensor]) -> int:
    """How many products of a layer went there."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        linear(*given)
    return sum(event.count for event in profiled.key_averages() if event.key == "mkldnn::_linear_pointwise")


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_gradients_are_those_of_double_precision(name: str) -> None:
    for single, double in zip(results(name, torch.float32), results(name, torch.float64), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-3)


def test_large_ones_alone_are_others_and_all_are_torchs_own_afterwards() -> None:
    large, small = operands(torch.float32), operands(torch.float32, rows=1)
    others = [small, [each.double() for each in large]]
    assert by_onednn(large) == 1 and [by_onednn(each) for each in others] == [0, 0]
    ours = [linear(*each) for each in others]
    products.use_torch_products()
    assert by_onednn(large) == 0
    assert all(torch.equal(a, linear(*each)) for a, each in zip(ours, others, strict=True))


def test_the_same_bits_wherever_the_numbers_lie() -> None:
    x, w, b = (each.detach() for each in operands(torch.float32))
    found = []
    for shift in range(4):
        room = torch.empty(x.numel() + 4)
        room[shift : shift + x.numel()] = x.flatten()
        found.append(linear(room[shift : shift + x.numel()].view_as(x), w, b))
    assert all(torch.equal(found[0], each) for each in found)


def test_shapes_that_do_not_fit_are_refused_in_torchs_words() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.ones(100, 70) @ torch.ones(60, 90)


def test_operations_are_counted_as_ever() -> None:
    x, w, b = operands(torch.float32)
    with FlopCounterMode(display=False) as counter:
        linear(x, w, b).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 24 * 40 * 56


def test_the_switch_decides_and_the_processor_where_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    products.use_torch_products()
    monkeypatch.setenv(products.SWITCH, "torch")
    assert not products.use_quick_products()
    monkeypatch.delenv(products.SWITCH)
    processor = Path("/proc/cpuinfo").read_text()
    assert products.use_quick_products() == ("AuthenticAMD" in processor and "avx512f" in processor)
