"""Known answers and invariants of PPO's arithmetic (docs/algorithms/ppo.md)."""

import itertools
import math

import pytest
import torch

from prefopt.losses import ppo

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])


def random_rollout(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).unbind()
    return rewards, values


def gae_by_loops(rewards, values, mask, gamma: float, lam: float):
    """Equation 16 of arXiv 1506.02438, as it is written: a sum over what follows."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        length = int(mask[row].sum())
        v = [*values[row, :length].tolist(), 0.0]
        delta = [rewards[row, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            advantages[row, t] = sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, length))
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_of_the_paper(gamma: float, lam: float) -> None:
    rewards, values = random_rollout()
    advantages, returns = ppo.gae(rewards, values, MASK, gamma, lam)
    assert torch.allclose(advantages, gae_by_loops(rewards, values, MASK, gamma, lam), atol=1e-12)
    assert torch.allclose(returns, torch.where(MASK.bool(), advantages + values, 0.0), atol=1e-12)


def test_lambda_one_gives_the_reward_to_go_and_lambda_zero_the_one_step_error() -> None:
    rewards, values = random_rollout()
    inside = torch.where(MASK.bool(), rewards, 0.0)
    to_go = inside.flip(1).cumsum(1).flip(1)
    _, returns = ppo.gae(rewards, values, MASK, 1.0, 1.0)
    assert torch.allclose(returns, torch.where(MASK.bool(), to_go, 0.0), atol=1e-12)
    advantages, _ = ppo.gae(rewards, values, MASK, 1.0, 0.0)
    following = torch.cat([torch.where(MASK.bool(), values, 0.0)[:, 1:], torch.zeros(3, 1)], 1)
    assert torch.allclose(advantages, torch.where(MASK.bool(), rewards + following - values, 0.0), atol=1e-12)


def test_without_value_and_kl_the_advantage_of_every_token_is_the_score() -> None:
    scores = torch.tensor([2.0, -1.0, 0.5])
    rewards = ppo.token_rewards(scores, torch.zeros(3, 4), 0.0, MASK)
    advantages, _ = ppo.gae(rewards, torch.zeros(3, 4), MASK, 1.0, 0.95)
    assert advantages[0, 2] == 2.0
    advantages, _ = ppo.gae(rewards, torch.zeros(3, 4), MASK, 1.0, 1.0)
    assert torch.equal(advantages, MASK * scores[:, None])


def test_a_row_of_token_rewards_sums_to_its_score_minus_the_price_of_its_kl() -> None:
    generator = torch.Generator().manual_seed(3)
    scores, kl = torch.randn(3, generator=generator), torch.randn(3, 4, generator=generator)
    rewards = ppo.token_rewards(scores, kl, 0.3, MASK)
    assert torch.allclose(rewards.sum(1), scores - 0.3 * (kl * MASK).sum(1), atol=1e-6)
    assert torch.equal(rewards * (1 - MASK), torch.zeros(3, 4))
    assert torch.isclose(rewards[0, 2], scores[0] - 0.3 * kl[0, 2])  # at the last token, not after it


def test_padding_changes_nothing() -> None:
    rewards, values = random_rollout()
    wide = [torch.nn.functional.pad(x, (0, 3), value=float("inf")) for x in (rewards, values)]
    mask = torch.nn.functional.pad(MASK, (0, 3))
    advantages, returns = ppo.gae(*wide, mask, 1.0, 0.95)
    narrow, narrow_returns = ppo.gae(rewards, values, MASK, 1.0, 0.95)
    assert torch.equal(advantages[:, :4], narrow) and torch.equal(returns[:, :4], narrow_returns)
    assert torch.equal(advantages[:, 4:], torch.zeros(3, 3, dtype=torch.float64))
    assert torch.allclose(ppo.masked_whiten(advantages, mask)[:, :4], ppo.masked_whiten(narrow, MASK), atol=1e-12)
    kl = ppo.kl_tokens(*wide, mask)
    assert torch.isfinite(kl).all() and torch.equal(kl[:, :4], ppo.kl_tokens(rewards, values, MASK))
    losses = ppo.policy_loss(*wide, advantages, mask, ppo.PPOOptions()).losses
    assert torch.equal(losses[:, :4], ppo.policy_loss(rewards, values, narrow, MASK, ppo.PPOOptions()).losses)


def test_the_policy_that_sampled_has_ratio_one_no_kl_and_the_plain_gradient() -> None:
    logps, advantages = random_rollout(1)
    trained = logps.clone().requires_grad_()
    out = ppo.policy_loss(trained, logps, advantages, MASK, ppo.PPOOptions())
    assert torch.equal(out.ratio, MASK.double()) and not out.approx_kl.any() and not out.clipped.any()
    out.losses.sum().backward()
    assert torch.allclose(trained.grad, -advantages * MASK)
    whitened = ppo.masked_whiten(advantages, MASK)
    assert abs(ppo.masked_mean(ppo.policy_loss(logps, logps, whitened, MASK, ppo.PPOOptions()).losses, MASK)) < 1e-12


@pytest.mark.parametrize(("log_ratio", "advantage", "expected", "flows"), [
    (math.log(1.5), 1.0, -1.2, False), (math.log(1.5), -1.0, 1.5, True),
    (math.log(0.5), 1.0, -0.5, True), (math.log(0.5), -1.0, 0.8, False),
    (math.log(1.1), 1.0, -1.1, True),
])  # fmt: skip
def test_the_clip_is_pessimistic(log_ratio: float, advantage: float, expected: float, flows: bool) -> None:
    logps = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    out = ppo.policy_loss(logps, torch.zeros_like(one), advantage * one, one, ppo.PPOOptions())
    out.losses.sum().backward()
    assert out.losses.item() == pytest.approx(expected)
    assert bool(logps.grad.any()) is flows and bool(out.clipped.item()) is not flows


def test_gradients_agree_with_finite_differences() -> None:
    old, advantages = random_rollout(4)
    logps = (old + 0.3 * torch.randn_like(old)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ppo.policy_loss(x, old, advantages, MASK, ppo.PPOOptions()).losses, logps)
    assert torch.autograd.gradcheck(lambda x: ppo.value_loss(x, old, advantages, MASK, 0.2).losses, logps)


def test_the_value_loss_is_half_the_square_until_the_value_has_moved_too_far() -> None:
    one = torch.ones(1, 3)
    out = ppo.value_loss(torch.tensor([[0.1, 0.5, -0.5]]), 0 * one, one, one, 0.2)
    assert out.losses.tolist()[0] == pytest.approx([0.405, 0.32, 1.125])  # clipped at 0.2; -0.5 is worse than its clip
    assert out.clipped.tolist() == [[0.0, 1.0, 0.0]]


def test_the_loss_of_parts_adds_up_to_the_loss_of_the_whole() -> None:
    old, advantages = random_rollout(5)
    logps, options = old + 0.1, ppo.PPOOptions()

    def loss(rows: slice, tokens=None):
        policy = ppo.policy_loss(logps[rows], old[rows], advantages[rows], MASK[rows], ppo.PPOOptions())
        value = ppo.value_loss(logps[rows], old[rows], advantages[rows], MASK[rows], 0.2)
        return ppo.ppo_loss(policy, value, MASK[rows], options, tokens)

    parts = loss(slice(0, 1), MASK.sum()) + loss(slice(1, 3), MASK.sum())
    assert torch.allclose(parts, loss(slice(0, 3)), atol=1e-12)


def test_whitening_has_mean_zero_and_variance_one_over_the_mask_and_can_keep_the_mean() -> None:
    _, values = random_rollout(6)
    for shift in (True, False):
        out = ppo.masked_whiten(values, MASK, shift_mean=shift)[MASK.bool()]
        assert out.var(correction=0).item() == pytest.approx(1, abs=1e-6)
        assert out.mean().item() == pytest.approx(0 if shift else values[MASK.bool()].mean().item(), abs=1e-9)


def test_a_constant_added_to_all_scores_leaves_whitened_advantages_unchanged_without_a_value() -> None:
    scores = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    # All of one length: with different lengths a constant per episode is not a constant per token.
    mask, kl = torch.ones(3, 4), torch.zeros(3, 4, dtype=torch.float64)

    def advantages(shift: float) -> torch.Tensor:
        rewards = ppo.token_rewards(scores + shift, kl, 0.1, mask)
        return ppo.masked_whiten(ppo.gae(rewards, kl, mask, 1.0, 1.0)[0], mask)

    assert torch.allclose(advantages(0.0), advantages(7.0), atol=1e-9)


def enumerated(theta: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    """Exact expectation over the vocabulary of the score-function gradient with the estimator as reward."""
    logp = theta.log_softmax(-1)
    kl = ppo.kl_tokens(logp.detach()[:, None], reference[:, None], torch.ones(7, 1), estimator)[:, 0]
    (gradient,) = torch.autograd.grad((logp.exp().detach() * kl * logp).sum(), theta)
    return gradient


def test_only_k1_in_the_reward_has_the_gradient_of_the_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
    logp = theta.log_softmax(-1)
    (forward,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), theta, retain_graph=True)
    (backward,) = torch.autograd.grad((reference.exp() * (reference - logp)).sum(), theta)
    assert torch.allclose(enumerated(theta, reference, "k1"), forward, atol=1e-12)
    assert torch.allclose(enumerated(theta, reference, "k3"), forward - backward, atol=1e-12)
    assert not torch.allclose(enumerated(theta, reference, "k2"), forward, atol=1e-2)
    for wrong in ("k2", "k3"):
        with pytest.raises(ValueError, match="wrong gradient"):
            ppo.kl_tokens(logp, reference, torch.ones(7), wrong, for_reward=True)


def test_all_estimators_have_the_kl_as_their_mean_or_near_it() -> None:
    generator = torch.Generator().manual_seed(1)
    logp, reference = torch.randn(2, 7, 1, generator=generator, dtype=torch.float64).log_softmax(1).unbind()
    exact = (logp.exp() * (logp - reference)).sum()
    for estimator in ("k1", "k3"):
        mean = (logp.exp() * ppo.kl_tokens(logp, reference, torch.ones(7, 1), estimator)).sum()
        assert torch.isclose(mean, exact)


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant() -> None:
    returns, values = random_rollout(8)
    assert ppo.explained_variance(returns, returns, MASK).item() == pytest.approx(1)
    assert ppo.explained_variance(torch.full_like(values, 3.0), returns, MASK).item() == pytest.approx(0)


def test_ranks_that_share_their_sums_whiten_as_one() -> None:
    """Two ranks in one process: the second's sums are those that its rows give."""
    values, mask = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.ones(4, 5)
    whole = ppo.masked_whiten(values, mask)
    first, second = values[:2], values[2:]
    mean = values.mean()
    sums = iter([torch.tensor([10.0, float(second.sum())]), (second - mean).square().sum()])
    assert torch.allclose(ppo.masked_whiten(first, mask[:2], reduce=lambda x: x + next(sums)), whole[:2], atol=1e-6)


def test_potentials_change_when_a_row_is_paid_and_not_how_much() -> None:
    generator = torch.Generator().manual_seed(3)
    kl, potentials = torch.randn(2, 3, 4, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    scores = torch.tensor([2.0, -1.0, 0.5])
    at_the_end = ppo.token_rewards(scores, kl, 0.3, mask)
    on_the_way = ppo.token_rewards(scores, kl, 0.3, mask, potentials)
    torch.testing.assert_close(on_the_way.sum(1), at_the_end.sum(1))
    assert bool((on_the_way[mask == 0] == 0).all())
    gained = on_the_way - torch.where(mask.bool(), -0.3 * kl, 0.0)
    assert gained[0, 1] == pytest.approx(float(potentials[0, 2] - potentials[0, 1]), abs=1e-6)
    assert gained[1, 1] == pytest.approx(-1.0 - float(potentials[1, 1]), abs=1e-6)
    torch.testing.assert_close(ppo.token_rewards(scores, kl, 0.3, mask, torch.zeros(3, 4)), at_the_end)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
def test_potentials_leave_what_a_completion_is_worth_whatever_the_discount(gamma: float) -> None:
    """Returns from the first token: potentials that rise early are no reason to prefer a completion."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    scores, nothing = torch.tensor([2.0, -1.0, 0.5]), torch.zeros(3, 4)
    potentials = torch.randn(3, 4, generator=generator)
    potentials[:, 0] = 0.7  # of the prompt
    plain, shaped = (
        ppo.gae(ppo.token_rewards(scores, nothing, 0.0, mask, each, gamma), nothing, mask, gamma, 1.0)[1]
        for each in (None, potentials)
    )
    torch.testing.assert_close(shaped[:, 0], plain[:, 0])
    torch.testing.assert_close((shaped + torch.where(mask.bool(), potentials, 0.0))[:, 1:], plain[:, 1:])


def test_potentials_leave_the_expected_gradient_and_take_from_its_variance() -> None:
    """All completions of three tokens out of three, and a score that is the sum of what tokens are worth."""
    generator = torch.Generator().manual_seed(4)
    worth = torch.tensor([1.0, 0.0, -2.0], dtype=torch.double)
    logits = torch.randn(13, 3, dtype=torch.double, generator=generator).requires_grad_()  # a row for each beginning

    def row(start: tuple[int, ...]) -> int:
        return sum(3**n for n in range(len(start))) + sum(token * 3**n for n, token in enumerate(start))

    completions = list(itertools.product(range(3), repeat=3))
    logps = torch.stack([torch.stack([logits[row(c[:t])].log_softmax(0)[c[t]] for t in range(3)]) for c in completions])
    mask, nothing = torch.ones(27, 3), torch.zeros(27, 3, dtype=torch.double)
    scores = worth[torch.tensor(completions)].sum(1)
    known = torch.cat([nothing[:, :1], worth[torch.tensor(completions)].cumsum(1)[:, :2]], 1)
    means, spreads = [], []
    for potentials in (None, known):
        rewards = ppo.token_rewards(scores, nothing, 0.0, mask, potentials)
        advantages, _ = ppo.gae(rewards, nothing, mask, 1.0, 1.0)
        each = torch.stack(
            [
                torch.autograd.grad((a * p).sum(), logits, retain_graph=True)[0]
                for a, p in zip(advantages, logps, strict=True)
            ]
        )
        chance = logps.detach().sum(1).exp()[:, None, None]
        means.append((chance * each).sum(0))
        spreads.append(float((chance * (each - means[-1]).square()).sum()))
    torch.testing.assert_close(means[0], means[1], atol=1e-12, rtol=0)
    assert spreads[1] < 0.8 * spreads[0]
