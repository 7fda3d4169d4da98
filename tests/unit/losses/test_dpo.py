"""The DPO family: gradients, closed forms, minimisers and limits. Parity with TRL is in test_dpo_trl.py."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from prefopt.losses.dpo import LENGTH_NORMALISED, REFERENCE_FREE, SORTED, dpo_loss, dr_dpo, needs_reference
from prefopt.losses.dpo_variants import DPO_LOSSES
from prefopt.losses.pair_statistics import DPOOptions, PairStatistics, score
from prefopt.recipe.options import dpo as typed
from tests.unit.losses.pairs import moved, pair, random_pair, side

NAMES = sorted(DPO_LOSSES)
PAIRED = [name for name in NAMES if name not in SORTED]
SMOOTH = DPOOptions(beta=0.3, label_smoothing=0.1)
ZERO = torch.zeros(1, dtype=torch.double)
LOG2 = math.log(2)


def at(h: float, name: str, options: DPOOptions, beta: float = 1.0) -> float:
    """The loss where the chosen answer's log-ratio is h / beta and the rejected one's 0."""
    chosen = torch.tensor([h / beta], dtype=torch.double)
    return dpo_loss(pair(chosen, torch.zeros_like(chosen)), name, options._replace(beta=beta)).losses.item()


def test_every_typed_name_has_an_implementation() -> None:
    assert set(get_args(typed.DPOLossType)) == set(DPO_LOSSES)
    assert typed.SORTED == SORTED and typed.LENGTH_NORMALISED == LENGTH_NORMALISED and REFERENCE_FREE < set(DPO_LOSSES)
    defaults = {name: field.get_default() for name, field in typed.DPOLossOptions.model_fields.items()}
    assert {name: defaults[name] for name in DPOOptions._fields} == DPOOptions()._asdict()
    assert typed.LOSSES_OF.keys() <= set(DPOOptions._fields)
    assert set.union(*map(set, typed.LOSSES_OF.values())) <= set(DPO_LOSSES)


@pytest.mark.parametrize("name", NAMES)
def test_an_option_changes_the_losses_that_are_said_to_read_it_and_no_other(name: str) -> None:
    p = random_pair()
    base = DPOOptions(beta=0.3, label_smoothing=0.05)
    changed = {
        "label_smoothing": 0.2, "simpo_gamma": 2.0, "cpo_alpha": 0.3, "orpo_lambda": 0.7, "discopop_tau": 1.0,
        "rdpo_alpha": 0.4, "chipo_clip": 0.1, "dpop_lambda": 1.0, "tdpo_alpha": 2.0, "ropo_alpha": 5.0, "rpo_eta": 3.0,
        "odpo_alpha": 4.0, "f_divergence_type": "js_divergence",
    }  # fmt: skip
    for option, value in changed.items():
        same = torch.equal(dpo_loss(p, name, base).losses, dpo_loss(p, name, base._replace(**{option: value})).losses)
        assert same is not (name in typed.LOSSES_OF[option]), option
    alpha = [base._replace(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=a) for a in (0.3, 0.6)]
    first, second = (dpo_loss(p, name, options).losses for options in alpha)
    assert torch.equal(first, second) is not (name in typed.LOSSES_OF["f_alpha_divergence_coef"])


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_matches_finite_differences(name: str, divergence: str) -> None:
    p = random_pair(6)
    if name == "tdpo":  # its gradient is stopped at one place, on purpose, and not at the log-probabilities
        p = p._replace(chosen=p.chosen._replace(sequential_kl=p.chosen.sequential_kl.detach()))
    options = SMOOTH._replace(f_divergence_type=divergence, ld_alpha=0.4, use_weighting=name not in SORTED)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return dpo_loss(moved(p, chosen, rejected), name, options).losses

    inputs = p.chosen.logps.clone().requires_grad_(), p.rejected.logps.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6)


# apo_down lets both answers fall, sft knows no rejected one, and discopop has a hollow around the reference.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("apo_down", "sft", "discopop")])
def test_a_gradient_step_separates_chosen_from_rejected(name: str) -> None:
    start = torch.zeros(4, dtype=torch.double)
    p = pair(start, start)._replace(margin=torch.ones_like(start))
    kl = torch.zeros_like(start)
    p = p._replace(chosen=p.chosen._replace(sequential_kl=kl), rejected=p.rejected._replace(sequential_kl=kl))
    chosen, rejected = p.chosen.logps.clone().requires_grad_(), p.rejected.logps.clone().requires_grad_()
    dpo_loss(moved(p, chosen, rejected), name, DPOOptions(0.2, 0.1)).losses.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()


AT_THE_REFERENCE = {
    "sigmoid": LOG2, "cdpo": LOG2, "robust": LOG2, "hinge": 1.0, "ipo": 0.25, "ipo_sum": 0.25, "sigmoid_norm": LOG2,
    "discopop": (LOG2 + 1) / 2, "rdpo": LOG2, "chipo": LOG2, "dpop": LOG2, "nca_pair": 2 * LOG2, "bco_pair": 2 * LOG2,
    "sppo_hard": 0.5, "apo_zero": 1.0, "apo_down": 1.0, "aot": LOG2, "aot_unpaired": LOG2,
    "ropo": 8 / 9 * (LOG2 + 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(AT_THE_REFERENCE))
def test_value_where_policy_and_reference_are_equal(name: str) -> None:
    assert at(0.0, name, DPOOptions()) == pytest.approx(AT_THE_REFERENCE[name], abs=1e-12)


CLOSED_FORMS = {
    "rpo": lambda h, o: kl(sigma(o.rpo_eta * 0.7), sigma(h)),
    "odpo": lambda h, o: -math.log(sigma(h - o.odpo_alpha * 0.7)),
    "exo_pair": lambda h, o: kl(sigma(h), 0.9),
    "ropo": lambda h, o: 8 / 9 * -math.log(sigma(h)) + 16 / 9 * sigma(-h),
    "dpop": lambda h, o: -math.log(sigma(h - o.dpop_lambda * max(0.0, -h))),
    "chipo": lambda h, o: -math.log(sigma(math.exp(h) + h - 1)),
    "nca_pair": lambda h, o: -math.log(sigma(h)) - 0.5 * math.log(sigma(-h)) - 0.5 * math.log(0.5),
    "apo_down": lambda h, o: sigma(h) + 1 - sigma(h),
}


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("name", sorted(CLOSED_FORMS))
@pytest.mark.parametrize("h", [-1.3, -0.2, 0.4, 1.1])
def test_closed_forms(name: str, h: float) -> None:
    options = DPOOptions(beta=1.0, label_smoothing=0.1, dpop_lambda=2.0, rpo_eta=1.5, odpo_alpha=0.5)
    chosen = torch.tensor([h], dtype=torch.double)
    p = pair(chosen, torch.zeros_like(chosen))._replace(margin=torch.full_like(chosen, 0.7))
    expected = CLOSED_FORMS[name](h, options)
    assert dpo_loss(p, name, options).losses.item() == pytest.approx(expected, abs=1e-12)


# -- minimisers --------------------------------------------------------------------------------------------------------


def least(name: str, options: DPOOptions, margin: float = 0.0) -> float:
    """The h at which a loss is least."""
    h = torch.linspace(-10, 30, 40_001, dtype=torch.double)
    p = pair(h / options.beta, torch.zeros_like(h))._replace(margin=torch.full_like(h, margin))
    return h[dpo_loss(p, name, options).losses.argmin()].item()


def test_margins_at_which_the_losses_rest() -> None:
    epsilon = 0.2
    rest = math.log((1 - epsilon) / epsilon)
    assert least("cdpo", DPOOptions(0.1, epsilon)) == pytest.approx(rest, abs=1e-3)  # β Δ* of 1.386
    assert least("exo_pair", DPOOptions(0.1, epsilon)) == pytest.approx(rest, abs=1e-3)
    assert least("rpo", DPOOptions(0.1, rpo_eta=2.0), margin=1.5) == pytest.approx(3.0, abs=1e-3)
    assert least("ipo_sum", DPOOptions(0.1)) == pytest.approx(0.5, abs=1e-3)  # Δ* of 1 / 2τ
    assert least("ipo", DPOOptions(0.1)) == pytest.approx(4 * 0.5, abs=1e-3)  # four tokens
    assert least("sigmoid", DPOOptions(0.1)) == 30.0 and least("odpo", DPOOptions(0.1), margin=2.0) == 30.0


def test_robust_is_unbiased_under_flipped_labels() -> None:
    p, epsilon = random_pair(), 0.3
    options = DPOOptions(0.2, epsilon)
    clean, flipped = dpo_loss(p, "robust", options).losses, dpo_loss(p.swapped(), "robust", options).losses
    expected = dpo_loss(p, "sigmoid", DPOOptions(0.2)).losses
    torch.testing.assert_close((1 - epsilon) * clean + epsilon * flipped, expected)


def test_rdpo_learns_the_reward_minus_the_price_of_its_tokens() -> None:
    """With plenty of labels by the true reward, R-DPO's policy is the optimum of r - α |y|; the other sign is not."""
    reward, length = torch.tensor([1.0, 0.2, -0.4, 0.9]).double(), torch.tensor([3.0, 9.0, 4.0, 30.0]).double()
    beta, alpha = 0.5, 0.1
    i, j = torch.combinations(torch.arange(4)).unbind(1)
    truth = torch.sigmoid(reward[i] - reward[j])
    logits = torch.zeros(4, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    reference = torch.log_softmax(torch.tensor([0.3, -0.2, 0.5, 0.0]).double(), 0)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        rho = torch.log_softmax(logits, 0) - reference
        p = PairStatistics(side(rho[i], length[i]), side(rho[j], length[j]))
        loss = dpo_loss(p, "rdpo", DPOOptions(beta, rdpo_alpha=alpha), truth).losses.sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    optimum = torch.softmax(reference + (reward - alpha * length) / beta, 0)
    torch.testing.assert_close(torch.softmax(logits.detach(), 0), optimum, atol=1e-6, rtol=1e-5)
    wrong = torch.softmax(reference + (reward + alpha * length) / beta, 0)
    assert (wrong - optimum).abs().max() > 0.5


# -- limits and equivalences -------------------------------------------------------------------------------------------

SAME_AS_SIGMOID = {
    "cdpo": {"label_smoothing": 0.0},
    "robust": {"label_smoothing": 0.0},
    "rdpo": {"rdpo_alpha": 0.0},
    "dpop": {"dpop_lambda": 0.0},
    "tdpo": {"tdpo_alpha": 0.0},
    "odpo": {"odpo_alpha": 0.0},
}


@pytest.mark.parametrize("name", sorted(SAME_AS_SIGMOID))
def test_what_is_dpo_without_its_addition(name: str) -> None:
    p, options = random_pair(), DPOOptions(0.2)._replace(**SAME_AS_SIGMOID[name])
    torch.testing.assert_close(dpo_loss(p, name, options).losses, dpo_loss(p, "sigmoid", options).losses)


def test_rpo_of_certain_labels_is_dpo() -> None:
    p = random_pair()._replace(margin=torch.full((16,), 60.0, dtype=torch.double))
    torch.testing.assert_close(dpo_loss(p, "rpo").losses, dpo_loss(p, "sigmoid").losses, atol=1e-12, rtol=1e-9)


def test_ld_alpha_of_one_changes_nothing_and_of_zero_drops_the_tail() -> None:
    p = random_pair()
    whole = dpo_loss(p, "sigmoid").losses
    torch.testing.assert_close(dpo_loss(p, "sigmoid", DPOOptions(ld_alpha=1.0)).losses, whole)
    cut = [
        s._replace(logps=s.logps - s.tail_logps, reference_logps=s.reference_logps - s.reference_tail_logps)
        for s in (p.chosen, p.rejected)
    ]
    expected = dpo_loss(PairStatistics(cut[0], cut[1]), "sigmoid").losses
    torch.testing.assert_close(dpo_loss(p, "sigmoid", DPOOptions(ld_alpha=0.0)).losses, expected)


def test_the_alpha_divergence_lies_between_the_other_two() -> None:
    s = random_pair().chosen
    near_one, near_zero = (
        score(s, DPOOptions(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=a)) for a in (1 - 1e-8, 1e-9)
    )
    torch.testing.assert_close(near_one, score(s, DPOOptions()))
    torch.testing.assert_close(near_zero, score(s, DPOOptions(f_divergence_type="forward_kl")))


def test_chipo_pulls_twice_as_hard_at_the_reference_and_nowhere_beyond_its_clip() -> None:
    def slope(name: str, h: float, options: DPOOptions) -> float:
        chosen = torch.tensor([h], dtype=torch.double, requires_grad=True)
        dpo_loss(pair(chosen, ZERO), name, options).losses.sum().backward()
        assert chosen.grad is not None
        return chosen.grad.item()

    assert slope("chipo", 0.0, DPOOptions(0.1)) == pytest.approx(2 * slope("sigmoid", 0.0, DPOOptions(0.1)))
    assert slope("chipo", 6.0, DPOOptions(0.1, chipo_clip=1.0)) == 0.0
    assert math.isfinite(slope("chipo", 500.0, DPOOptions(0.1)))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 14.0])
def test_ropo_is_steepest_with_a_slope_of_one_and_bounded_where_it_disbelieves(alpha: float) -> None:
    h = torch.linspace(-40, 40, 80_001, dtype=torch.double, requires_grad=True)
    dpo_loss(pair(h, torch.zeros_like(h)), "ropo", DPOOptions(1.0, ropo_alpha=alpha)).losses.sum().backward()
    assert h.grad is not None and h.grad.abs().max().item() == pytest.approx(1.0, abs=1e-6)
    assert h.grad[0].abs().item() == pytest.approx(4 * alpha / (1 + alpha) ** 2, abs=1e-9)  # far below 1 for large α


def test_tdpo_stops_the_gradient_of_the_chosen_divergence_alone() -> None:
    p = random_pair(4)
    divergences = [p.chosen.sequential_kl.clone().requires_grad_(), p.rejected.sequential_kl.clone().requires_grad_()]
    p = p._replace(
        chosen=p.chosen._replace(sequential_kl=divergences[0]),
        rejected=p.rejected._replace(sequential_kl=divergences[1]),
    )
    dpo_loss(p, "tdpo").losses.sum().backward()
    assert divergences[0].grad is None and (divergences[1].grad > 0).all()


def test_orpo_by_its_odds() -> None:
    p = random_pair()
    chosen, rejected = ((s.logps / s.length).exp() for s in (p.chosen, p.rejected))
    ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    expected = -chosen.log() - 0.3 * torch.sigmoid(ratio.log()).log()
    torch.testing.assert_close(dpo_loss(p, "orpo", DPOOptions(orpo_lambda=0.3)).losses, expected)


def test_orpo_of_a_certain_answer_is_finite() -> None:
    certain = torch.zeros(1, dtype=torch.float32, requires_grad=True)
    p = PairStatistics(side(torch.zeros(1)), side(torch.zeros(1)))
    loss = dpo_loss(moved(p, certain, torch.tensor([-3.0])), "orpo").losses
    loss.sum().backward()
    assert loss.isfinite().all() and certain.grad is not None and certain.grad.isfinite().all()


def test_the_likelihood_is_a_mean_over_tokens() -> None:
    p = random_pair()
    expected = -p.chosen.logps.sum() / p.chosen.length.sum()
    assert dpo_loss(p, "sft").losses.mean().item() == pytest.approx(expected.item(), abs=1e-12)
    # Parts of a step, given the step's mean length, add up to the step.
    mean = p.chosen.length.mean()
    parts = [
        PairStatistics(*(type(s)(*(None if x is None else x[rows] for x in s)) for s in p[:2]), None, mean)
        for rows in (slice(0, 5), slice(5, 16))
    ]
    total = sum(dpo_loss(part, "sft").losses.sum() for part in parts) / 16
    assert float(total) == pytest.approx(expected.item(), abs=1e-12)


# -- mixtures, labels, weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRED)
def test_a_soft_label_is_the_expectation_over_both_orders(name: str) -> None:
    p = random_pair()
    probability = torch.linspace(0, 1, 16, dtype=torch.double)
    here, there = (dpo_loss(q, name, SMOOTH).losses for q in (p, p.swapped()))
    expected = probability * here + (1 - probability) * there
    torch.testing.assert_close(dpo_loss(p, name, SMOOTH, probability).losses, expected)


def test_a_soft_label_of_dpo_is_conservative_dpo() -> None:
    p = random_pair()
    soft = dpo_loss(p, "sigmoid", DPOOptions(0.2), torch.full((16,), 0.9, dtype=torch.double)).losses
    torch.testing.assert_close(soft, dpo_loss(p, "cdpo", DPOOptions(0.2, 0.1)).losses)


def test_a_mixture_is_the_weighted_sum_of_its_parts() -> None:
    p = random_pair()
    mixed = dpo_loss(p, ["sigmoid", "bco_pair", "sft"], SMOOTH, loss_weights=[0.8, 0.2, 1.5]).losses
    parts = [dpo_loss(p, name, SMOOTH).losses for name in ("sigmoid", "bco_pair", "sft")]
    torch.testing.assert_close(mixed, 0.8 * parts[0] + 0.2 * parts[1] + 1.5 * parts[2])
    assert needs_reference(["sft", "sigmoid"]) and not needs_reference(["sft", "simpo"])


def test_wpo_weighs_pairs_by_what_the_policy_would_sample() -> None:
    p = random_pair()
    plain = dpo_loss(p, "sigmoid").losses
    weighed = dpo_loss(p, "sigmoid", DPOOptions(use_weighting=True)).losses
    torch.testing.assert_close(weighed, plain * p.chosen.alignment * p.rejected.alignment)


def test_dr_dpo_lies_between_the_least_loss_and_the_mean() -> None:
    losses, weights = random_pair().chosen.logps.abs() / 30, torch.ones(16, dtype=torch.double)
    assert dr_dpo(losses, weights, 1e5).item() == pytest.approx(losses.mean().item(), abs=1e-4)
    assert dr_dpo(losses, weights, 1e-4).item() == pytest.approx(losses.min().item(), abs=1e-3)
    # A weight of two is the row twice, and a weight of zero is no row.
    weights[0], weights[1] = 2.0, 0.0
    again = torch.cat([losses[:1], losses[:1], losses[2:]])
    torch.testing.assert_close(dr_dpo(losses, weights, 0.5), dr_dpo(again, torch.ones(16, dtype=torch.double), 0.5))


def test_rewards_are_scaled_log_ratios_without_gradient() -> None:
    p = random_pair()
    chosen = p.chosen.logps.clone().requires_grad_()
    output = dpo_loss(moved(p, chosen, p.rejected.logps), "sigmoid", DPOOptions(0.5))
    assert not output.chosen_rewards.requires_grad
    torch.testing.assert_close(output.chosen_rewards, 0.5 * (p.chosen.logps - p.chosen.reference_logps))
    free = p._replace(**{name: getattr(p, name)._replace(reference_logps=None) for name in ("chosen", "rejected")})
    torch.testing.assert_close(dpo_loss(free, "simpo", DPOOptions(0.5)).chosen_rewards, 0.5 * p.chosen.logps)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: dpo_loss(p, "sigmoid", DPOOptions(beta=0.0)), "beta"),
        (lambda p: dpo_loss(p, "sigmoid", DPOOptions(label_smoothing=0.5)), "beta"),
        (lambda p: dpo_loss(p, "nonsense"), "unknown"),
        (lambda p: dpo_loss(p, []), "0 loss types"),
        (lambda p: dpo_loss(p, ["sigmoid", "sft"], loss_weights=[1.0]), "2 loss types have 1 loss_weights"),
        (lambda p: dpo_loss(moved(p, p.chosen.logps[:2], p.rejected.logps)), "expected"),
        (lambda p: dpo_loss(moved(p, p.chosen.logps[:, None], p.rejected.logps[:, None])), "expected"),
        (lambda p: dpo_loss(p._replace(margin=None), "odpo"), "needs a margin"),
        (lambda p: dpo_loss(p._replace(chosen=p.chosen._replace(sequential_kl=None)), "tdpo"), "sequential_kl"),
        (lambda p: dpo_loss(p._replace(chosen=p.chosen._replace(reference_logps=None))), "reference_logps"),
        (lambda p: dpo_loss(p._replace(chosen=p.chosen._replace(alignment=None)), "sigmoid", WPO), "alignment"),
        (lambda p: dpo_loss(p._replace(chosen=p.chosen._replace(tail_logps=None)), "sigmoid", LD), "tail_logps"),
        (lambda p: dpo_loss(p, "aot", WPO), "use_weighting"),
        (lambda p: dpo_loss(p, "aot", None, p.chosen.alignment), "soft labels"),
        (lambda p: dpo_loss(p, "exo_pair"), "label_smoothing must be above 0"),
        (lambda p: dpo_loss(p, "sigmoid", DPOOptions(f_divergence_type="chi2")), "unknown f_divergence_type"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(random_pair())


WPO, LD = DPOOptions(use_weighting=True), DPOOptions(ld_alpha=0.5)
