import math
from typing import get_args

import pytest
import torch

from prefopt.losses.dpo import DPO_LOSSES, DPOOptions, PairStatistics, dpo_loss
from prefopt.recipe.options.dpo import DPOLossType

NAMES = sorted(DPO_LOSSES)


def pair(chosen: torch.Tensor, rejected: torch.Tensor, lengths: float = 4.0) -> PairStatistics:
    length = torch.full_like(chosen, lengths)
    return PairStatistics(chosen, rejected, length, length)


def random_pair(rows: int = 16) -> PairStatistics:
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = (torch.randn(rows, generator=generator, dtype=torch.double) * 4 for _ in range(2))
    lengths = torch.randint(1, 30, (2, rows), generator=generator).double()
    return PairStatistics(chosen, rejected, lengths[0], lengths[1])


def test_every_typed_name_has_an_implementation() -> None:
    assert set(get_args(DPOLossType)) == set(DPO_LOSSES)


def test_sigmoid_at_the_reference_is_log_two() -> None:
    zero = torch.zeros(3, dtype=torch.double)
    assert dpo_loss(pair(zero, zero)).losses.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_matches_finite_differences(name: DPOLossType) -> None:
    p = random_pair(6)
    options = DPOOptions(beta=0.3, label_smoothing=0.1)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return dpo_loss(PairStatistics(chosen, rejected, p[2], p[3]), name, options).losses

    chosen, rejected = p[0].clone().requires_grad_(), p[1].clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (chosen, rejected), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_step_separates_chosen_from_rejected(name: DPOLossType) -> None:
    zero = torch.zeros(4, dtype=torch.double)
    chosen, rejected = zero.clone().requires_grad_(), zero.clone().requires_grad_()
    dpo_loss(pair(chosen, rejected), name, DPOOptions(0.2, 0.1)).losses.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()


@pytest.mark.parametrize("name", ["cdpo", "robust"])
def test_without_smoothing_the_noise_aware_losses_are_dpo(name: DPOLossType) -> None:
    p = random_pair()
    expected = dpo_loss(p, "sigmoid", DPOOptions(0.2)).losses
    torch.testing.assert_close(dpo_loss(p, name, DPOOptions(0.2, 0.0)).losses, expected)


def test_cdpo_is_least_where_the_margin_explains_the_smoothing() -> None:
    epsilon, beta = 0.2, 0.1
    margins = torch.linspace(0, 40, 4001, dtype=torch.double)
    losses = dpo_loss(pair(margins, torch.zeros_like(margins)), "cdpo", DPOOptions(beta, epsilon)).losses
    best = margins[losses.argmin()].item()
    assert best == pytest.approx(math.log((1 - epsilon) / epsilon) / beta, abs=0.02)  # 13.8629


def test_robust_is_unbiased_under_flipped_labels() -> None:
    p, epsilon = random_pair(), 0.3
    flipped = PairStatistics(p[1], p[0], p[3], p[2])
    options = DPOOptions(0.2, epsilon)
    noisy = (1 - epsilon) * dpo_loss(p, "robust", options).losses + epsilon * dpo_loss(
        flipped, "robust", options
    ).losses
    torch.testing.assert_close(noisy, dpo_loss(p, "sigmoid", DPOOptions(0.2)).losses)


def test_ipo_is_least_at_one_over_two_tau_per_token() -> None:
    beta, tokens = 0.1, 4.0
    best = torch.tensor([tokens / (2 * beta)], dtype=torch.double)
    assert dpo_loss(pair(best, torch.zeros(1, dtype=torch.double), tokens), "ipo", DPOOptions(beta)).losses.item() == 0


def test_hinge_is_flat_beyond_its_margin() -> None:
    far = torch.tensor([11.0], dtype=torch.double)
    assert dpo_loss(pair(far, torch.zeros(1, dtype=torch.double)), "hinge", DPOOptions(0.1)).losses.item() == 0
    assert dpo_loss(pair(-far, torch.zeros(1, dtype=torch.double)), "hinge", DPOOptions(0.1)).losses.item() == 2.1


def test_rewards_are_scaled_log_ratios_without_gradient() -> None:
    p = random_pair()
    chosen = p[0].clone().requires_grad_()
    output = dpo_loss(PairStatistics(chosen, *p[1:]), "sigmoid", DPOOptions(0.5))
    assert not output.chosen_rewards.requires_grad
    torch.testing.assert_close(output.chosen_rewards, 0.5 * p[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda p: dpo_loss(p, "sigmoid", DPOOptions(beta=0.0)),
        lambda p: dpo_loss(p, "sigmoid", DPOOptions(label_smoothing=0.5)),
        lambda p: dpo_loss(p, "nonsense"),
        lambda p: dpo_loss(PairStatistics(p[0][:2], *p[1:])),
        lambda p: dpo_loss(PairStatistics(*(t[:, None] for t in p))),
    ],
)
def test_what_is_out_of_range_is_refused(call) -> None:
    with pytest.raises(ValueError, match=r"beta|unknown|expected"):
        call(random_pair())


@pytest.mark.parametrize("name", NAMES)
def test_a_soft_label_is_the_expectation_over_both_orders(name: DPOLossType) -> None:
    p, options = random_pair(), DPOOptions(0.2, 0.1)
    probability = torch.linspace(0, 1, 16, dtype=torch.double)
    swapped = PairStatistics(p[1], p[0], p[3], p[2])
    expected = (
        probability * dpo_loss(p, name, options).losses + (1 - probability) * dpo_loss(swapped, name, options).losses
    )
    torch.testing.assert_close(dpo_loss(p, name, options, probability).losses, expected)


def test_a_soft_label_of_dpo_is_conservative_dpo() -> None:
    p = random_pair()
    soft = dpo_loss(p, "sigmoid", DPOOptions(0.2), torch.full((16,), 0.9, dtype=torch.double)).losses
    torch.testing.assert_close(soft, dpo_loss(p, "cdpo", DPOOptions(0.2, 0.1)).losses)
