"""Statistics of tokens, a few at a time, are those of all logits at once, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prefopt.losses import token_statistics as module
from prefopt.losses.logprobs import completion_sums, entropy, exact_kl, sums_of_tokens, token_logps
from prefopt.losses.token_statistics import Head, TokenStatistics, token_statistics

N, H, V = 23, 7, 11


def given(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states, reference = (torch.randn(N, H, dtype=torch.float64, generator=generator) for _ in range(2))
    weight = torch.randn(V, H, dtype=torch.float64, generator=generator)
    return states, reference, weight, torch.randint(V, (N,), generator=generator)


def capped(weight: Tensor) -> Head:
    return Head(lambda states: 3 * torch.tanh(states @ weight.T / 3))


@pytest.mark.parametrize("chunk", [1, 4, N, 100])
def test_they_are_those_of_all_logits(chunk: int) -> None:
    states, reference, weight, targets = given()
    head = capped(weight)
    found = token_statistics(states, targets, head, collision=True, reference_states=reference, max_logits=chunk * V)
    logits, others = head.logits(states)[None], head.logits(reference)[None]
    assert torch.allclose(found.logps, token_logps(logits, targets[None])[0], rtol=1e-12)
    assert torch.allclose(found.entropy, entropy(logits)[0], rtol=1e-12)
    assert torch.allclose(found.divergence, exact_kl(others, logits)[0], rtol=1e-10)
    assert torch.allclose(found.log_collision, logits[0].softmax(-1).square().sum(-1).log(), rtol=1e-12)


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_are_those_of_autograd_and_of_finite_differences(trained: bool) -> None:
    states, reference, weight, targets = given(1)
    outer = torch.randn(2, N, dtype=torch.float64)

    def gradients(compute) -> list[Tensor]:
        own, head = states.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        logps, divergence = compute(own, head)
        (logps * outer[0] + divergence * outer[1]).sum().backward()
        return [own.grad, head.grad] if trained else [own.grad]

    def ours(own: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        said = token_statistics(
            own, targets, Head(capped(head).logits, trained), reference_states=reference, max_logits=4 * V
        )
        return said.logps, said.divergence

    def plain(own: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        logits = capped(head).logits(own)[None]
        with torch.no_grad():
            others = capped(head).logits(reference)[None]
        return token_logps(logits, targets[None])[0], exact_kl(others, logits)[0]

    for found, expected in zip(gradients(ours), gradients(plain), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    few = states[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda own: token_statistics(own, targets[:3], capped(weight)).logps, few)


def test_no_more_logits_are_there_than_allowed() -> None:
    states, _, weight, targets = given()
    seen: list[int] = []

    def logits(part: Tensor) -> Tensor:
        seen.append(len(part))
        return part @ weight.T

    token_statistics(states.requires_grad_(), targets, Head(logits), max_logits=5 * V)
    assert seen[1:] == [5, 5, 5, 5, 3]  # the first call asks for the size of the vocabulary
    seen.clear()
    token_statistics(states, targets, Head(logits)).logps.sum().backward()
    assert seen[1:] == [N]  # and the backward pass computes none again


def test_no_tokens_are_no_fault() -> None:
    states, reference, weight, targets = given()
    own = states[:0].requires_grad_()
    found = token_statistics(own, targets[:0], capped(weight), collision=True, reference_states=reference[:0])
    assert all(values.shape == (0,) for values in found)


def test_sums_over_tokens_are_those_of_padded_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2, 6, H), (V, H)))
    tokens = torch.randint(V, (2, 6), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    head_length = torch.tensor([2, 2])
    expected = completion_sums(hidden @ weight.T, tokens, mask, head_length=head_length, alignment=True)
    rows, columns = mask.nonzero(as_tuple=True)
    said = token_statistics(
        hidden[rows, columns - 1], tokens[rows, columns], Head(lambda states: states @ weight.T), collision=True
    )
    offset = (mask.cumsum(1) - 1)[rows, columns]
    found = sums_of_tokens(said, rows, offset, 2, head_length)
    for name, one, other in zip(expected._fields, found, expected, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, rtol=1e-12), name


def test_low_precision_is_summed_in_float32() -> None:
    states, _, _, targets = given()
    layer = nn.Linear(H, V, bias=False, dtype=torch.bfloat16)
    own = states.to(torch.bfloat16).requires_grad_()
    found = token_statistics(own, targets, Head(layer))
    found.logps.sum().backward()
    assert found.logps.dtype is torch.float32 and own.grad.dtype is torch.bfloat16
    assert module.MAX_LOGITS == 2**22


@pytest.mark.parametrize("trained", [False, True])
def test_autocast_leaves_entropies_and_divergences_as_they_are(trained: bool) -> None:
    """Given logits, so that what is in half precision anyway does not matter."""
    logits, others = 3 * torch.randn(2, N, V, generator=torch.Generator().manual_seed(1))
    head = Head(lambda states: states, trained)

    def said() -> TokenStatistics:
        targets = torch.arange(N) % V
        return token_statistics(logits, targets, head, collision=True, reference_states=others)

    with torch.autocast("cpu", torch.bfloat16):
        cast = said()
    for one, other in zip(cast, said(), strict=True):
        assert one is not None and other is not None and one.dtype is torch.float32
        torch.testing.assert_close(one, other)
