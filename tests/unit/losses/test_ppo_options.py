"""PPO's optional clips, entropy bonus and KL as a loss: known answers, exact gradients, a reference in loops."""

import math
import random

import pytest
import torch
from torch import Tensor

from prefopt.losses import ppo
from prefopt.losses.ppo import PPOOptions

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])


def of_one_token(log_ratio: float, advantage: float, options: PPOOptions) -> tuple[float, bool, bool]:
    """Loss, whether a gradient flows, and whether the loss counts as clipped."""
    logp = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    out = ppo.policy_loss(logp, torch.zeros_like(one), advantage * one, one, options)
    out.losses.sum().backward()
    return out.losses.item(), bool(logp.grad.any()), bool(out.clipped.item())


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "flows"),
    [
        (1.25, 1.0, -1.25, True),  # beyond cliprange, within cliprange_high
        (1.35, 1.0, -1.3, False),
        (1.35, -1.0, 1.35, True),  # pessimistic: what is too likely and bad is pushed down without a limit
        (0.75, 1.0, -0.75, True),
        (0.85, -1.0, 0.85, True),
        (0.75, -1.0, 0.8, False),  # below, cliprange still decides
    ],
)
def test_above_one_the_ratio_has_a_clip_of_its_own(ratio, advantage, expected, flows) -> None:
    found = of_one_token(math.log(ratio), advantage, PPOOptions(cliprange=0.2, cliprange_high=0.3))
    assert found == (pytest.approx(expected), flows, not flows)


def test_a_high_clip_equal_to_the_low_one_is_the_symmetric_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    logps, old, advantages = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64).unbind()
    symmetric = ppo.policy_loss(logps, old, advantages, MASK, PPOOptions(cliprange=0.1))
    both = ppo.policy_loss(logps, old, advantages, MASK, PPOOptions(cliprange=0.1, cliprange_high=0.1))
    assert all(torch.equal(a, b) for a, b in zip(symmetric, both, strict=True))


@pytest.mark.parametrize("ratio", [0.1, 0.79, 1.0, 1.19, 2.9, 3.1, 50.0])
@pytest.mark.parametrize("advantage", [-2.0, 2.0])
def test_dual_clip_bounds_the_loss_of_bad_tokens_alone_and_stops_the_gradient_there(ratio, advantage) -> None:
    plain = of_one_token(math.log(ratio), advantage, PPOOptions())
    dual = of_one_token(math.log(ratio), advantage, PPOOptions(dual_clip=3.0))
    if advantage < 0 and ratio > 3:
        assert dual == (pytest.approx(6.0), False, True)  # at most -c A
        assert plain[1]
    else:
        assert dual == plain


def test_without_a_value_clip_the_value_loss_is_half_the_square_wherever_the_value_went() -> None:
    generator = torch.Generator().manual_seed(1)
    values, old, returns = (10 * torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)).unbind()
    values.requires_grad_()
    out = ppo.value_loss(values, old, returns, MASK, None)
    assert torch.equal(out.losses, 0.5 * (values - returns).square() * MASK) and not out.clipped.any()
    out.losses.sum().backward()
    assert torch.allclose(values.grad, (values - returns).detach() * MASK)
    assert torch.allclose(ppo.value_loss(values, old, returns, MASK, 1e9).losses, out.losses)


def test_outside_the_mask_nothing_counts_not_even_nan() -> None:
    bad = torch.where(MASK.bool(), 0.5, math.nan).double().requires_grad_()
    options = PPOOptions(dual_clip=2.0, entropy_coef=0.1, kl_coef=0.3, kl_estimator="k2")
    policy = ppo.policy_loss(bad, torch.zeros(3, 4), torch.ones(3, 4), MASK, options)
    kl = ppo.kl_tokens(bad, torch.zeros(3, 4), MASK, "k2", for_loss=True)
    loss = ppo.ppo_loss(policy, None, MASK, options, entropy=bad, kl=kl)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(bad.grad).all()
    assert not (bad.grad * (1 - MASK)).any() and (bad.grad[MASK.bool()] != 0).all()


# -- KL as a loss, by enumeration over a vocabulary of one token -------------------------------------------------------


def distributions(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    return theta, torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)


def expected_gradient(theta: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """E over sampled tokens of the gradient of the estimate through `ppo_loss`; where it was sampled is a constant."""
    logp = theta.log_softmax(-1)
    mask = torch.ones(7, 1)
    kl = ppo.kl_tokens(logp[:, None], reference[:, None], mask, estimator)
    parts = [
        ppo.ppo_loss(None, None, mask[v : v + 1], PPOOptions(kl_coef=0.7), kl=kl[v : v + 1]) * logp[v].detach().exp()
        for v in range(7)
    ]
    (gradient,) = torch.autograd.grad(torch.stack(parts).sum() / 0.7, theta)
    return gradient


def test_as_a_loss_k2_is_the_reverse_kl_k3_the_forward_and_k1_nothing() -> None:
    for seed in range(3):
        theta, reference = distributions(seed)
        logp = theta.log_softmax(-1)
        (reverse,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), theta, retain_graph=True)
        (forward,) = torch.autograd.grad((reference.exp() * (reference - logp)).sum(), theta)
        # `ppo_loss` adds up in the type of its terms, which is float64 here.
        assert torch.allclose(expected_gradient(theta, reference, "k2"), reverse, atol=1e-12)
        assert torch.allclose(expected_gradient(theta, reference, "k3"), forward, atol=1e-12)
        assert torch.allclose(expected_gradient(theta, reference, "k1"), torch.zeros(7).double(), atol=1e-12)
        assert not torch.allclose(reverse, forward, atol=1e-2)


def test_an_estimator_in_the_wrong_place_is_refused() -> None:
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="k1 as a loss"):
        ppo.kl_tokens(one, one, one, "k1", for_loss=True)
    for wrong in ("k2", "k3"):
        with pytest.raises(ValueError, match="in the reward"):
            ppo.kl_tokens(one, one, one, wrong, for_reward=True)
        ppo.kl_tokens(one, one, one, wrong, for_loss=True)
    ppo.kl_tokens(one, one, one, "k1", for_reward=True)


def test_the_entropy_bonus_pulls_towards_the_uniform_distribution() -> None:
    theta, _ = distributions()
    one = torch.ones(1, 1)
    logp = theta.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum()
    loss = ppo.ppo_loss(None, None, one, PPOOptions(entropy_coef=0.5), entropy=entropy.view(1, 1))
    (gradient,) = torch.autograd.grad(loss, theta, retain_graph=True)
    (of_entropy,) = torch.autograd.grad(entropy, theta)
    assert torch.allclose(gradient, -0.5 * of_entropy, atol=1e-12)
    after = (theta - 0.1 * gradient).log_softmax(-1)
    assert -(after.exp() * after).sum() > entropy


# -- the whole ---------------------------------------------------------------------------------------------------------


def by_loops(rows: dict[str, list], mask: list, options: PPOOptions, estimator: str) -> float:
    """The loss as the papers write it, one token after another."""
    total, count = 0.0, 0
    for b, row in enumerate(mask):
        for t, inside in enumerate(row):
            if not inside:
                continue
            count += 1
            at = {name: values[b][t] for name, values in rows.items()}
            ratio, a = math.exp(at["logps"] - at["old"]), at["advantages"]
            high = options.cliprange if options.cliprange_high is None else options.cliprange_high
            surrogate = min(ratio * a, min(max(ratio, 1 - options.cliprange), 1 + high) * a)
            if options.dual_clip is not None and a < 0:
                surrogate = max(surrogate, options.dual_clip * a)
            error = (at["values"] - at["returns"]) ** 2
            if options.cliprange_value is not None:
                moved = at["values"] - at["old_values"]
                limited = at["old_values"] + min(max(moved, -options.cliprange_value), options.cliprange_value)
                error = max(error, (limited - at["returns"]) ** 2)
            d = at["logps"] - at["reference"]
            kl = {"k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]
            total += -surrogate + options.vf_coef * error / 2
            total += -options.entropy_coef * at["entropy"] + options.kl_coef * kl
    return total / count


NAMES = ("logps", "old", "reference", "advantages", "values", "old_values", "returns", "entropy")


def some_options(number: int) -> PPOOptions:
    choose = random.Random(number)
    return PPOOptions(
        cliprange=choose.uniform(0.05, 0.5),
        cliprange_high=choose.choice([None, choose.uniform(0.05, 0.8)]),
        dual_clip=choose.choice([None, choose.uniform(1.1, 3.0)]),
        cliprange_value=choose.choice([None, choose.uniform(0.05, 0.5)]),
        vf_coef=choose.choice([0.0, 0.1, 1.0]),
        entropy_coef=choose.choice([0.0, 0.02]),
        kl_coef=choose.choice([0.0, 0.1]),
        kl_estimator=choose.choice(["k2", "k3"]),
    )


def whole(rows: dict[str, Tensor], mask: Tensor, options: PPOOptions, tokens=None, parts=("policy", "value")) -> Tensor:
    policy = ppo.policy_loss(rows["logps"], rows["old"], rows["advantages"], mask, options)
    value = ppo.value_loss(rows["values"], rows["old_values"], rows["returns"], mask, options.cliprange_value)
    kl = ppo.kl_tokens(rows["logps"], rows["reference"], mask, options.kl_estimator, for_loss=True)
    more = {"entropy": rows["entropy"], "kl": kl} if "policy" in parts else {}
    return ppo.ppo_loss(
        policy if "policy" in parts else None, value if "value" in parts else None, mask, options, tokens, **more
    )


@pytest.mark.parametrize("number", range(12))
def test_the_whole_loss_is_that_of_plain_loops_and_its_parts_add_up_to_it(number: int) -> None:
    options, generator = some_options(number), torch.Generator().manual_seed(number)
    values = torch.randn(len(NAMES), 5, 9, generator=generator, dtype=torch.float64)
    rows = dict(zip(NAMES, values.unbind(), strict=True))
    lengths = torch.randint(1, 10, (5, 1), generator=generator)
    mask = (torch.arange(9) < lengths).long()
    expected = by_loops(
        {name: each.tolist() for name, each in rows.items()}, mask.tolist(), options, options.kl_estimator
    )
    loss = whole(rows, mask, options)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    # Policy and value apart, and some of the rows at a time.
    apart = whole(rows, mask, options, parts=("policy",)) + whole(rows, mask, options, parts=("value",))
    assert apart.item() == pytest.approx(expected, abs=1e-6)
    pieces = [slice(0, 2), slice(2, 5)]
    cut = [whole({n: r[s] for n, r in rows.items()}, mask[s], options, mask.sum()).item() for s in pieces]
    assert sum(cut) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_the_whole_agrees_with_finite_differences() -> None:
    options = PPOOptions(0.2, 0.3, 2.0, 0.2, 0.5, 0.02, 0.1, "k3")
    generator = torch.Generator().manual_seed(5)
    rows = dict(
        zip(NAMES, torch.randn(len(NAMES), 3, 4, generator=generator, dtype=torch.float64).unbind(), strict=True)
    )
    trained = [rows[name].requires_grad_() for name in ("logps", "values", "entropy")]

    def loss(logps: Tensor, values: Tensor, entropy: Tensor) -> Tensor:
        return whole({**rows, "logps": logps, "values": values, "entropy": entropy}, MASK, options)

    assert torch.autograd.gradcheck(loss, trained)


def test_without_any_part_the_loss_is_zero() -> None:
    assert ppo.ppo_loss(None, None, MASK, PPOOptions()).item() == 0
    empty = torch.zeros(3, 4, dtype=torch.long)
    assert whole({name: torch.randn(3, 4) for name in NAMES}, empty, PPOOptions(entropy_coef=1.0, kl_coef=1.0)) == 0
