"""Costs in the losses of the DPO family: the tilted reference, its derivation, and the focal loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefopt.losses.dpo import LENGTH_NORMALISED, dpo_loss, tilted
from prefopt.losses.logprobs import completion_sums, sums_of_tokens
from prefopt.losses.pair_statistics import CompletionStatistics, DPOOptions, PairStatistics
from prefopt.losses.token_statistics import Head, token_statistics
from tests.unit.losses.pairs import pair, random_pair

OUTCOMES = 6


def numbers(seed: int) -> Tensor:
    return torch.randn(OUTCOMES, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def all_pairs(logits: Tensor, reference: Tensor) -> tuple[PairStatistics, Tensor, Tensor]:
    """Every two outcomes of a policy that can be written down."""
    first, second = torch.triu_indices(OUTCOMES, OUTCOMES, offset=1)
    policy, ones = logits.log_softmax(0), torch.ones(len(first), dtype=torch.double)
    sides = [CompletionStatistics(policy[index], ones, reference[index]) for index in (first, second)]
    return PairStatistics(sides[0], sides[1]), first, second


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_optimum_is_the_reference_tilted_by_reward_minus_cost(beta: float) -> None:
    """Labels by r alone, costs c: the loss is smallest at π ∝ π_ref exp((r - c) / β), and nowhere near it lower."""
    reward, cost, reference = numbers(0), numbers(1).abs(), numbers(2).log_softmax(0)
    wanted = (reference + (reward - cost) / beta).requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        pairs, first, second = all_pairs(logits, reference)
        likes = torch.sigmoid(reward[first] - reward[second])
        options = DPOOptions(beta=beta)
        return dpo_loss(pairs, "sigmoid", options, likes, costs=(cost[first], cost[second])).losses.sum()

    best = loss(wanted)
    (gradient,) = torch.autograd.grad(best, wanted)
    assert float(gradient.abs().max()) < 1e-10
    for seed in range(3, 9):
        assert loss(wanted.detach() + 0.1 * numbers(seed)) > best
    without = (reference + reward / beta).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(without), without)
    assert float(gradient.abs().max()) > 1e-3


def test_the_cheaper_answer_must_win_by_more() -> None:
    zero = torch.zeros(1, dtype=torch.double)

    def loss(chosen: float, rejected: float) -> float:
        costs = (torch.full_like(zero, chosen), torch.full_like(zero, rejected))
        return float(dpo_loss(pair(zero, zero), options=DPOOptions(beta=0.1), costs=costs).losses)

    assert loss(0, 1) == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(1.0))))
    assert loss(0, 2) > loss(0, 1) > loss(0, 0) > loss(1, 0) and loss(1, 1) == loss(0, 0)


@pytest.mark.parametrize("name", ["sigmoid", "ipo_sum", "hinge", "rdpo", "nca_pair", "chipo", "robust"])
def test_costs_are_the_loss_from_another_reference(name: str) -> None:
    pairs = random_pair()
    costs = (torch.rand(16, dtype=torch.double), torch.rand(16, dtype=torch.double))
    options = DPOOptions(label_smoothing=0.1 if name == "robust" else 0.0)
    with_costs = dpo_loss(pairs, name, options, costs=costs)
    plain = dpo_loss(tilted(pairs, *costs, options.beta), name, options)
    assert torch.equal(with_costs.losses, plain.losses)
    none = dpo_loss(pairs, name, options)
    zeros = (torch.zeros(16, dtype=torch.double),) * 2
    assert torch.equal(dpo_loss(pairs, name, options, costs=zeros).losses, none.losses)
    # What is reported is the policy's own implicit reward, of r - c.
    assert torch.equal(with_costs.chosen_rewards, none.chosen_rewards)
    assert not torch.allclose(with_costs.losses, none.losses)


def test_without_a_reference_costs_are_refused() -> None:
    pairs = pair(torch.zeros(2), torch.zeros(2))
    bare = pairs._replace(chosen=pairs.chosen._replace(reference_logps=None))
    with pytest.raises(ValueError, match="tilt the reference"):
        dpo_loss(bare, "simpo", costs=(torch.zeros(2), torch.zeros(2)))


@pytest.mark.parametrize("name", sorted(LENGTH_NORMALISED))
def test_a_mean_over_tokens_has_no_place_for_the_cost_of_an_answer(name: str) -> None:
    """Tilting their reference would give answers of one cost another loss by their lengths alone."""
    pairs, same = random_pair(), torch.ones(16, dtype=torch.double)
    through_the_reference = dpo_loss(tilted(pairs, same, same, 0.1), name).losses
    assert not torch.allclose(through_the_reference, dpo_loss(pairs, name).losses)
    with pytest.raises(ValueError, match="averages over tokens"):
        dpo_loss(pairs, [name, "sft"], costs=(same, same))


def test_every_other_comparison_is_indifferent_to_equal_costs() -> None:
    """What both answers cost cancels; a likelihood beside the comparison is not touched by any."""
    pairs, ones = random_pair(), torch.ones(16, dtype=torch.double)
    for name in ("sigmoid", "ipo_sum", "hinge", "rdpo", "robust", "discopop", "exo_pair"):
        options = DPOOptions(label_smoothing=0.1)
        plain = dpo_loss(pairs, name, options).losses
        assert torch.allclose(dpo_loss(pairs, name, options, costs=(ones, ones)).losses, plain), name
    both = dpo_loss(pairs, ["sigmoid", "sft"], costs=(ones, 3 * ones)).losses
    apart = dpo_loss(pairs, "sigmoid", costs=(ones, 3 * ones)).losses + dpo_loss(pairs, "sft").losses
    assert torch.allclose(both, apart)


def test_a_relabelled_pair_is_the_swapped_one() -> None:
    pairs = random_pair()
    zeros = torch.zeros(16, dtype=torch.double)
    for name in ("sigmoid", "ipo", "rdpo", "sft", "simpo", "odpo"):
        turned = dpo_loss(pairs, name, probability=zeros).losses
        assert torch.equal(turned, dpo_loss(pairs.swapped(), name).losses)


def test_focal_is_its_equation_and_zero_is_the_likelihood() -> None:
    pairs = random_pair()
    h = 0.1 * (
        (pairs.chosen.logps - pairs.chosen.reference_logps) - (pairs.rejected.logps - pairs.rejected.reference_logps)
    )
    right = torch.sigmoid(h)
    found = dpo_loss(pairs, options=DPOOptions(focal_gamma=2.0)).losses
    assert torch.allclose(found, -((1 - right) ** 2) * right.log())
    plain = dpo_loss(pairs, options=DPOOptions(focal_gamma=0.0)).losses
    assert torch.equal(plain, -torch.nn.functional.logsigmoid(h)) or torch.allclose(plain, -right.log())
    assert (found < plain).all()


def test_flagged_tokens_are_summed_alike_from_logits_and_from_states() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.double)
    states = torch.randn(2, 7, 5, generator=generator, dtype=torch.double)
    tokens = torch.randint(0, 11, (2, 7), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
    flags = torch.tensor([[0.5, 0.0, 2.0, 9.0], [0.0, 1.0, 0.0, 1.0]], dtype=torch.double)
    dense = completion_sums(states @ weight.T, tokens, mask, flags=flags)
    rows, places = mask.nonzero(as_tuple=True)
    offset = torch.tensor([0, 1, 2, 0, 1, 2, 3])
    head = Head(lambda part: part @ weight.T)
    said = token_statistics(states[rows, places - 1], tokens[rows, places], head)
    sparse = sums_of_tokens(said, rows, offset, 2, flags=flags)
    assert dense.unlikelihood is not None and sparse.unlikelihood is not None
    assert torch.allclose(dense.unlikelihood, sparse.unlikelihood) and torch.allclose(dense.logps, sparse.logps)
    p = said.logps.exp()
    by_hand = torch.stack(
        [-(0.5 * torch.log1p(-p[0]) + 2 * torch.log1p(-p[2])), -(torch.log1p(-p[4]) + torch.log1p(-p[6]))]
    )
    assert torch.allclose(sparse.unlikelihood, by_hand)
