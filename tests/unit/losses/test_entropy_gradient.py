"""The entropy's gradient from states, beside those of log-probability and divergence, is that of plain log_softmax."""

import pytest
import torch
from torch import Tensor

from prefopt.losses.token_statistics import Head, token_statistics

N, H, V = 23, 5, 11


def given(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, reference states, the head's weight, targets."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, H), (N, H), (V, H))
    states, reference, weight = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in shapes)
    return states, reference, weight, torch.randint(V, (N,), generator=generator)


def plain(states: Tensor, targets: Tensor, weight: Tensor, reference: Tensor | None) -> tuple[Tensor, ...]:
    logps = (states @ weight.T).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    chosen = logps.gather(1, targets[:, None])[:, 0]
    if reference is None:
        return chosen, entropy
    with torch.no_grad():
        theirs = (reference @ weight.T).log_softmax(-1)
    return chosen, entropy, (theirs.exp() * (theirs - logps)).sum(-1)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, N, 1000])
@pytest.mark.parametrize("which", [(0, 1), (1,), (0, 1, 2), (1, 2)])
def test_it_is_autograds_alone_and_with_the_others(trained: bool, chunk: int, which: tuple[int, ...]) -> None:
    states, reference, weight, targets = given(1)
    outer = torch.randn(3, N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    beside = reference if 2 in which else None

    def gradients(ours: bool) -> list[Tensor]:
        own, head = states.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        if ours:
            said = token_statistics(
                own, targets, Head(lambda each: each @ head.T, trained), reference_states=beside,
                entropy_gradient=True, max_logits=chunk * V,
            )  # fmt: skip
            numbers = (said.logps, said.entropy, said.divergence)
        else:
            numbers = plain(own, targets, head, beside)
        torch.stack([(numbers[place] * outer[place]).sum() for place in which]).sum().backward()
        return [own.grad, head.grad] if trained else [own.grad]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("trained", [False, True])
def test_there_is_none_where_it_is_not_asked_for(trained: bool) -> None:
    states, reference, weight, targets = given()
    head = Head(lambda each: each @ weight.T, trained)
    own = states.clone().requires_grad_()
    said = token_statistics(own, targets, head, reference_states=reference, collision=True)
    assert said.logps.requires_grad and said.divergence.requires_grad
    assert not said.entropy.requires_grad and not said.log_collision.requires_grad
    asked = token_statistics(own, targets, head, collision=True, entropy_gradient=True)
    assert asked.entropy.requires_grad and not asked.log_collision.requires_grad
    assert torch.allclose(asked.entropy, said.entropy)
    with torch.no_grad():
        assert not token_statistics(own, targets, head, entropy_gradient=True).entropy.requires_grad


@pytest.mark.parametrize("trained", [False, True])
def test_no_tokens_have_no_gradient_and_no_fault(trained: bool) -> None:
    _, _, weight, _ = given()
    own = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    said = token_statistics(
        own, torch.zeros(0, dtype=torch.long), Head(lambda each: each @ weight.T, trained), entropy_gradient=True
    )
    assert said.logps.shape == said.entropy.shape == (0,)
    (said.logps.sum() + said.entropy.sum()).backward()
    assert own.grad is None or own.grad.shape == (0, H)


def test_uniform_and_certain_distributions_have_the_entropies_they_must_and_flat_gradients() -> None:
    logits = torch.zeros(2, V, dtype=torch.float64)
    logits[1, 3] = 200.0
    logits.requires_grad_()
    said = token_statistics(logits, torch.tensor([0, 3]), Head(lambda each: each), entropy_gradient=True)
    assert torch.allclose(said.entropy, torch.tensor([V, 1.0], dtype=torch.float64).log(), atol=1e-12)
    said.entropy.sum().backward()
    assert torch.allclose(logits.grad, torch.zeros_like(logits), atol=1e-12)
