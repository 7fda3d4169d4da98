"""Group weights: identities, limits and the numbers of the paper."""

import pytest
import torch

from prefopt.losses.reward import reward_loss
from prefopt.stats.imbalance import effective_number_weights, inverse_weights

GROUPS = ["rare"] * 10 + ["common"] * 1000


def test_the_mean_weight_is_one_and_inverse_weights_make_groups_equal() -> None:
    weights = inverse_weights(GROUPS)
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert sum(weights[:10]) == pytest.approx(sum(weights[10:]))
    assert inverse_weights(["one"] * 7) == pytest.approx([1.0] * 7)


def test_effective_numbers_are_those_of_the_formula() -> None:
    weights = effective_number_weights(GROUPS, 0.999)
    assert sum(weights) / len(weights) == pytest.approx(1)
    # (1 - b) / (1 - b^n) is 0.10045 for 10 rows and 0.00158 for 1000.
    assert weights[0] / weights[-1] == pytest.approx(0.10045 / 0.00158, rel=3e-3)


def test_beta_goes_from_no_weights_to_inverse_weights() -> None:
    assert effective_number_weights(GROUPS, 0.0) == pytest.approx([1.0] * len(GROUPS))
    assert effective_number_weights(GROUPS, 1 - 1e-9) == pytest.approx(inverse_weights(GROUPS), rel=1e-4)
    with pytest.raises(ValueError, match="beta"):
        effective_number_weights(GROUPS, 1.0)


def test_a_row_that_is_there_k_times_pulls_as_one_of_weight_k() -> None:
    rare, common = torch.tensor([0.3, -0.2]).requires_grad_(), torch.tensor([1.0, 0.1, -2.0])

    def gradient(times: int, weight: float) -> torch.Tensor:
        chosen = torch.cat([rare.repeat(times), common])
        weights = torch.tensor([weight] * 2 * times + [1.0] * 3)
        return torch.autograd.grad((weights * reward_loss(chosen, 0 * chosen).losses).sum(), rare)[0]

    assert torch.allclose(gradient(3, 1.0), gradient(1, 3.0))
