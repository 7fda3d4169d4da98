import pytest
import torch

from prefopt.losses.sft import sft_losses
from prefopt.losses.unlikelihood import LEAST, log_complement, unlikelihood


def logits(seed: int = 0, vocabulary: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocabulary, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("token", range(3))
def test_the_gradient_is_that_of_the_paper(token: int) -> None:
    z = logits(token)
    unlikelihood(z.log_softmax(0)[token]).backward()
    p = z.detach().softmax(0)
    one_hot = torch.eye(7, dtype=torch.float64)[token]
    assert torch.allclose(z.grad, p[token] / (1 - p[token]) * (one_hot - p), atol=1e-12)
    numeric = torch.stack(
        [
            (unlikelihood((z + step).log_softmax(0)[token]) - unlikelihood((z - step).log_softmax(0)[token])) / 2e-6
            for step in 1e-6 * torch.eye(7, dtype=torch.float64)
        ]
    )
    assert torch.allclose(z.grad, numeric.detach(), atol=1e-8)


def test_what_the_token_loses_goes_to_the_others_in_proportion() -> None:
    z = logits()
    unlikelihood(z.log_softmax(0)[2]).backward()
    others = [k for k in range(7) if k != 2]
    p = z.detach().softmax(0)
    ratios = -z.grad[others] / p[others]
    assert torch.allclose(ratios, ratios[0].expand(6)) and abs(float(z.grad.sum())) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_that_is_sure_is_still_pulled_down_and_nothing_is_infinite(dtype: torch.dtype) -> None:
    for gap in (5.0, 12.0, 14.0):
        z = torch.tensor([gap, 0.0, 0.0], dtype=dtype, requires_grad=True)
        unlikelihood(z.log_softmax(0)[0]).backward()
        assert torch.isfinite(z.grad).all() and 0.1 < z.grad[0] <= 1.0 + 1e-6
    edge = torch.tensor([0.0, -1e-9, -LEAST, -20.0, -90.0], dtype=dtype, requires_grad=True)
    value = unlikelihood(edge)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(edge.grad).all()
    assert (value[:-1] >= value[1:]).all() and value[-1] >= 0


def test_the_gradient_is_exact_in_single_precision() -> None:
    """Also of tokens that are hardly ever said, next to which the slope of the straight line is 1e5 and more."""
    logps = torch.tensor([1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.99]).log().requires_grad_()
    unlikelihood(logps).sum().backward()
    p = logps.detach().double().exp()
    assert torch.allclose(logps.grad.double(), p / (1 - p), rtol=1e-5, atol=1e-7)


def test_the_complement_is_exact_below_the_edge_and_smooth_at_it() -> None:
    p = torch.tensor([1e-9, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    assert torch.allclose(log_complement(p.log()), torch.log1p(-p), atol=1e-12)
    below, above = torch.log1p(torch.tensor([-LEAST * (1 + 1e-6), -LEAST * (1 - 1e-6)], dtype=torch.float64))
    assert abs(float(log_complement(below) - log_complement(above))) < 1e-5


def test_plain_options_are_the_likelihood_bit_for_bit() -> None:
    logps = -torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) * 5
    logps.requires_grad_()
    ones, zeros = torch.ones(4, 9), torch.zeros(4, 9)
    for options in (
        {},
        {"focal_gamma": 0.0},
        {"imitation": ones, "unlikelihood_weights": zeros},
    ):
        losses = sft_losses(logps, **options)
        (gradient,) = torch.autograd.grad(losses.sum(), logps)
        assert torch.equal(losses, -logps) and torch.equal(gradient, -ones)


def test_a_flagged_token_is_unlearned_or_left_out_and_others_stay() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    kept = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    weight = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    losses = sft_losses(logps, imitation=kept, unlikelihood_weights=weight)
    assert losses.tolist() == pytest.approx([1.0, -2 * float(torch.log1p(-logps[1].exp())), 0.0])


def test_focal_is_its_equation_and_its_gradient_that_of_differences() -> None:
    logps = torch.tensor([-0.01, -0.5, -2.0, -7.0], dtype=torch.float64, requires_grad=True)
    p = logps.detach().exp()
    losses = sft_losses(logps, focal_gamma=2.0)
    assert torch.allclose(losses, -((1 - p) ** 2) * logps)
    assert torch.autograd.gradcheck(lambda x: sft_losses(x, focal_gamma=2.0), (logps,))
    sure = torch.zeros(1, requires_grad=True)
    sft_losses(sure, focal_gamma=2.0).sum().backward()
    assert torch.isfinite(sure.grad).all()
