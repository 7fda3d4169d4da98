"""The divergences of distillation: closed forms, their limits in k, and gradients without all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefopt.losses.distill import DistillTokens, Target, distill_tokens, divergence_of
from prefopt.losses.token_statistics import Head

TOKENS, HIDDEN, VOCABULARY = 7, 5, 11


def distributions(seed: int = 0, rows: int = TOKENS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, rows, VOCABULARY, generator=generator, dtype=torch.double)
    student, teacher = logits.log_softmax(-1)
    return student, teacher


def made(seed: int = 0, *, trained: bool = False) -> tuple[Tensor, Tensor, Head, Tensor, Head]:
    """States, targets, the student's head, the teacher's states and its head, of other size."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.double, requires_grad=True)
    teacher_states = torch.randn(TOKENS, HIDDEN + 2, generator=generator, dtype=torch.double)
    weight, other = (
        torch.randn(VOCABULARY, size, generator=generator, dtype=torch.double) for size in (HIDDEN, HIDDEN + 2)
    )
    weight.requires_grad_(trained)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return states, targets, Head(lambda x: x @ weight.T, trained), teacher_states, Head(lambda x: x @ other.T)


def test_both_directions_are_those_of_torch() -> None:
    student, teacher = distributions()
    forward = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    reverse = torch.nn.functional.kl_div(teacher, student, reduction="none", log_target=True).sum(1)
    assert torch.allclose(divergence_of(student, teacher, "forward"), forward, atol=1e-12)
    assert torch.allclose(divergence_of(student, teacher, "reverse"), reverse, atol=1e-12)
    assert not torch.allclose(forward, reverse, atol=1e-2)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_the_top_k_grow_to_the_whole(divergence: str) -> None:
    student, teacher = distributions(1, rows=50)
    whole = divergence_of(student, teacher, divergence)
    found = torch.stack([divergence_of(student, teacher, divergence, k) for k in range(1, VOCABULARY + 1)])
    assert (found.diff(dim=0) >= -1e-12).all() and (found >= -1e-12).all()
    assert (found[0] < whole - 1e-3).any(), "one token tells less than all"
    assert torch.equal(found[-1], whole)
    # What is left is one token: nothing is merged.
    assert torch.allclose(found[-2], whole, atol=1e-12)
    assert torch.equal(divergence_of(student, teacher, divergence, VOCABULARY + 5), whole)


def test_a_token_that_the_teacher_rules_out_costs_nothing_and_is_no_nan() -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    student = torch.tensor([[0.25, 0.25, 0.5]]).log().requires_grad_()
    found = divergence_of(student, teacher)
    assert found.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert divergence_of(student, teacher, top_k=2).item() == pytest.approx(found.item())
    found.backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"divergence": "sideways"}, "sideways"), ({"top_k": 0}, "top_k")],
)
def test_what_is_wrong_is_named(options: dict, words: str) -> None:
    student, teacher = distributions()
    with pytest.raises(ValueError, match=words):
        divergence_of(student, teacher, **options)
    with pytest.raises(ValueError, match=r"\[N, V\]"):
        divergence_of(student, teacher[:, 1:])


def by_hand(target: Target, soft: Tensor, seed: int = 0) -> tuple[Tensor, DistillTokens]:
    states, targets, head, teacher_states, teacher_head = made(seed)
    student = head.logits(states).log_softmax(-1)
    teacher = teacher_head.logits(teacher_states).log_softmax(-1)
    logps = student.gather(1, targets[:, None]).squeeze(1)
    divergence = divergence_of(student, teacher, *target)
    same = (student.argmax(1) == teacher.argmax(1)).double()
    entropies = (-(each.exp() * each).sum(1) for each in (student, teacher))
    entropy, teacher_entropy = entropies
    return states, DistillTokens(
        torch.where(soft, divergence, -logps), logps, entropy, divergence, teacher_entropy, same
    )


@pytest.mark.parametrize("max_logits", [1, 3 * VOCABULARY, 10**6])
@pytest.mark.parametrize("target", [Target(), Target(top_k=3), Target("reverse")])
@pytest.mark.parametrize("trained", [False, True])
def test_tokens_are_those_of_all_logits_however_they_are_cut(target: Target, max_logits: int, trained: bool) -> None:
    soft = torch.arange(TOKENS) % 3 > 0
    expected_states, expected = by_hand(target, soft)
    states, targets, head, teacher_states, teacher_head = made(trained=trained)
    found = distill_tokens(
        states, targets, head, soft=soft, teacher_states=teacher_states, teacher_head=teacher_head, target=target,
        max_logits=max_logits,
    )  # fmt: skip
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None and torch.allclose(ours, theirs, atol=1e-10)
    weights = torch.linspace(0.1, 2.0, TOKENS, dtype=torch.double)
    (found.losses * weights).sum().backward()
    (expected.losses * weights).sum().backward()
    assert torch.allclose(states.grad, expected_states.grad, atol=1e-10) and states.grad.abs().sum() > 0.1
    assert not found.entropy.requires_grad


@pytest.mark.parametrize("target", [Target(), Target(top_k=2), Target("reverse")])
def test_the_gradient_is_the_slope(target: Target) -> None:
    states, targets, head, teacher_states, teacher_head = made(3)
    soft = torch.ones(TOKENS, dtype=torch.bool)

    def losses(states: Tensor) -> Tensor:
        return distill_tokens(
            states, targets, head, soft=soft, teacher_states=teacher_states, teacher_head=teacher_head, target=target
        ).losses

    assert torch.autograd.gradcheck(losses, (states,))


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("top_k", [None, 4])
def test_a_student_that_is_its_teacher_has_no_gradient(divergence: str, top_k: int | None) -> None:
    states, targets, head, *_ = made(2)
    found = distill_tokens(
        states, targets, head, soft=torch.ones(TOKENS, dtype=torch.bool), teacher_states=states.detach(),
        target=Target(divergence, top_k),
    )  # fmt: skip
    found.losses.sum().backward()
    assert found.losses.abs().max() < 1e-14 and states.grad.abs().max() < 1e-14
    assert found.agreement.tolist() == [1.0] * TOKENS


def test_hard_tokens_need_no_teacher_and_soft_ones_do() -> None:
    states, targets, head, *_ = made()
    hard = torch.zeros(TOKENS, dtype=torch.bool)
    found = distill_tokens(states, targets, head, soft=hard)
    assert torch.equal(found.losses, -found.logps) and found.divergence is None
    with pytest.raises(ValueError, match="no teacher"):
        distill_tokens(states, targets, head, soft=~hard)


@pytest.mark.parametrize("trained", [False, True])
def test_no_tokens_are_no_losses(trained: bool) -> None:
    states, targets, head, teacher_states, teacher_head = made(trained=trained)
    found = distill_tokens(
        states[:0], targets[:0], head, soft=torch.zeros(0, dtype=torch.bool), teacher_states=teacher_states[:0],
        teacher_head=teacher_head,
    )  # fmt: skip
    assert found.losses.shape == found.logps.shape == (0,)
    found.losses.sum().backward()
