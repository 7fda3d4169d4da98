import pytest
import torch

from prefopt.losses.logprobs import completion_logps, entropy, exact_kl, token_logps


def logits(rows: int = 3, length: int = 5, vocabulary: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.double) * 3


def tokens(rows: int = 3, length: int = 5, vocabulary: int = 11) -> torch.Tensor:
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_token_logps_equal_log_softmax(temperature: float) -> None:
    expected = (logits() / temperature).log_softmax(-1).gather(-1, tokens()[..., None])[..., 0]
    torch.testing.assert_close(token_logps(logits(), tokens(), temperature), expected)


def test_half_precision_logits_are_reduced_in_float32() -> None:
    exact = token_logps(logits().float(), tokens())
    half = token_logps(logits().bfloat16(), tokens())
    assert half.dtype is torch.float32
    assert (half - exact).abs().max() < 0.05


def test_completion_logps_sum_only_the_completion() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    z, y = logits(), tokens()
    expected = [sum(z[b, t - 1].log_softmax(-1)[y[b, t]].item() for t in range(1, 5) if mask[b, t]) for b in range(3)]
    assert completion_logps(z, y, mask).tolist() == pytest.approx(expected, abs=1e-12)


def test_padding_changes_nothing_even_when_its_logits_are_infinite() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 0]] * 3)
    z = logits().requires_grad_()
    clean = completion_logps(z, tokens(), mask)
    dirty = z.detach().clone()
    dirty[:, 3:] = float("-inf")
    dirty[:, 3:, 0] = float("nan")
    torch.testing.assert_close(completion_logps(dirty, tokens(), mask), clean.detach())


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size() -> None:
    assert entropy(torch.zeros(1, 1, 16)).item() == pytest.approx(torch.tensor(16.0).log().item())


def test_kl_is_zero_for_equal_and_positive_for_different_distributions() -> None:
    assert exact_kl(logits(), logits() + 5).abs().max() < 1e-6  # a shift of all logits changes nothing
    assert (exact_kl(logits(), logits(seed=7)) > 0).all()


def test_exact_kl_is_the_mean_of_sampled_log_ratios() -> None:
    p, q = logits(1, 1, 5), logits(1, 1, 5, seed=9)
    drawn = torch.multinomial(
        p[0, 0].softmax(-1), 200_000, replacement=True, generator=torch.Generator().manual_seed(2)
    )
    ratio = (p[0, 0].log_softmax(-1) - q[0, 0].log_softmax(-1))[drawn]
    assert exact_kl(p, q).item() == pytest.approx(ratio.mean().item(), abs=4 * ratio.std().item() / 200_000**0.5)


def test_wrong_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected logits"):
        token_logps(logits()[0], tokens()[0])
    with pytest.raises(ValueError, match="temperature"):
        token_logps(logits(), tokens(), 0.0)
