"""Known answers of the reward model's loss (docs/algorithms/reward.md)."""

import math

import pytest
import torch

from prefopt.losses.reward import labelled, rating_loss
from prefopt.losses.reward import reward_loss as loss_and_margins


def reward_loss(*scores: torch.Tensor, **more) -> torch.Tensor:
    return loss_and_margins(*scores, **more).losses


def scores(seed: int = 0, count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, generator=generator, dtype=torch.float64).unbind()


def test_equal_scores_cost_log_two_whatever_the_label() -> None:
    same = torch.tensor([1.5, -3.0])
    for probability in (None, torch.tensor([0.2, 0.9])):
        assert reward_loss(same, same, probability=probability).tolist() == pytest.approx([math.log(2)] * 2)


def test_it_is_the_likelihood_of_the_bradley_terry_model() -> None:
    chosen, rejected = scores()
    preferred = chosen.exp() / (chosen.exp() + rejected.exp())
    assert torch.allclose(reward_loss(chosen, rejected), -preferred.log(), atol=1e-12)


def test_a_soft_label_costs_its_expectation_over_both_orders() -> None:
    chosen, rejected = scores(1)
    p = torch.linspace(0, 1, len(chosen), dtype=torch.float64)
    expected = p * reward_loss(chosen, rejected) + (1 - p) * reward_loss(rejected, chosen)
    assert torch.allclose(reward_loss(chosen, rejected, probability=p), expected, atol=1e-12)
    assert torch.allclose(reward_loss(rejected, chosen, probability=1 - p), expected, atol=1e-12)


def test_only_the_difference_counts_unless_scores_are_centred() -> None:
    chosen, rejected = scores(2)
    assert torch.allclose(reward_loss(chosen + 5, rejected + 5), reward_loss(chosen, rejected), atol=1e-12)
    centred = reward_loss(chosen, rejected, center_rewards_coefficient=0.1)
    assert torch.allclose(centred - reward_loss(chosen, rejected), 0.1 * (chosen + rejected) ** 2, atol=1e-12)


def test_a_tie_pulls_the_scores_together_and_a_margin_asks_for_more() -> None:
    difference = torch.linspace(-3, 3, 61, dtype=torch.float64)
    zero = torch.zeros_like(difference)
    tie = reward_loss(difference, zero, probability=torch.full_like(difference, 0.5))
    assert difference[tie.argmin()].item() == pytest.approx(0, abs=1e-9)
    margin = torch.full_like(difference, 1.2)
    assert torch.allclose(reward_loss(difference, zero, margin=margin), reward_loss(difference - 1.2, zero), atol=1e-12)


def test_the_best_difference_for_a_soft_label_is_its_log_odds() -> None:
    p = torch.tensor([0.8], dtype=torch.float64)
    difference = torch.tensor([math.log(0.8 / 0.2)], dtype=torch.float64, requires_grad=True)
    reward_loss(difference, torch.zeros(1, dtype=torch.float64), probability=p).sum().backward()
    assert difference.grad.item() == pytest.approx(0, abs=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    chosen, rejected = scores(3)
    p, margin = torch.rand(len(chosen)).double(), torch.rand(len(chosen)).double()

    def loss(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return reward_loss(w, r, probability=p, margin=margin, center_rewards_coefficient=0.01)

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_large_differences_stay_finite() -> None:
    out = reward_loss(torch.tensor([-1e4, 1e4]), torch.zeros(2), probability=torch.tensor([1.0, 0.5]))
    assert out.tolist() == pytest.approx([1e4, 5e3])


def test_the_margins_are_plain_differences_without_gradient() -> None:
    chosen, rejected = scores(4)
    found = loss_and_margins(chosen.requires_grad_(), rejected, margin=torch.ones_like(rejected)).margins
    assert torch.equal(found, chosen.detach() - rejected) and not found.requires_grad


def test_focal_modulation_of_zero_is_the_likelihood_and_of_two_leaves_out_what_is_ranked_right() -> None:
    chosen, rejected = scores(5)
    p = torch.linspace(0, 1, len(chosen), dtype=torch.float64)
    plain = reward_loss(chosen, rejected, probability=p)
    assert torch.equal(reward_loss(chosen, rejected, probability=p, focal_gamma=0.0), plain)
    right = torch.sigmoid(chosen - rejected)
    focal = reward_loss(chosen, rejected, focal_gamma=2.0)
    assert torch.allclose(focal, -((1 - right) ** 2) * right.log(), atol=1e-12)
    both = p * focal + (1 - p) * reward_loss(rejected, chosen, focal_gamma=2.0)
    assert torch.allclose(reward_loss(chosen, rejected, probability=p, focal_gamma=2.0), both, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda w, r: reward_loss(w, r, probability=p, focal_gamma=2.0),
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


def test_focal_modulation_stays_finite_where_everything_is_decided() -> None:
    difference = torch.tensor([-200.0, 0.0, 200.0], requires_grad=True)
    loss = reward_loss(difference, torch.zeros(3), focal_gamma=1.5)
    loss.sum().backward()
    assert loss.isfinite().all() and difference.grad.isfinite().all() and loss[0].item() == pytest.approx(200.0)


def test_ratings_cost_their_squared_error_and_are_least_where_they_are_met() -> None:
    chosen, rejected = scores(6)
    found = rating_loss(chosen, rejected, chosen + 1, rejected - 3)
    assert torch.allclose(found.losses, torch.full_like(chosen, 0.5 * (1 + 9)))
    assert torch.equal(found.margins, chosen - rejected)
    assert rating_loss(chosen, rejected, chosen, rejected).losses.abs().max() == 0


def test_labels_that_are_missing_are_told_from_ties() -> None:
    label, known = labelled(torch.tensor([0.5, math.nan, 1.0]))
    assert label.tolist() == [0.5, 0.5, 1.0] and known.tolist() == [1.0, 0.0, 1.0]
