import numpy as np
import pytest

from prefopt.stats.power import detectable_difference, sample_size_for_rate, standard_error_of


def test_known_answers() -> None:
    assert sample_size_for_rate(0.55) == 783
    assert detectable_difference(1.0) == pytest.approx(2.8016, abs=1e-4)
    assert standard_error_of(-1.96, 1.96) == pytest.approx(1.0, abs=1e-4)


def test_a_difference_of_that_size_is_shown_as_often_as_said() -> None:
    size, spread = 100, 2.0
    effect = detectable_difference(spread / size**0.5, power=0.8)
    means = np.random.default_rng(0).normal(effect, spread / size**0.5, size=20_000)
    assert np.mean(np.abs(means) > 1.96 * spread / size**0.5) == pytest.approx(0.8, abs=0.01)


def test_a_rate_is_told_from_another_as_often_as_said() -> None:
    size = sample_size_for_rate(0.6)
    wins = np.random.default_rng(1).binomial(size, 0.6, size=20_000) / size
    assert np.mean(np.abs(wins - 0.5) > 1.96 * 0.5 / size**0.5) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample_size_for_rate(0.5),
        lambda: sample_size_for_rate(1.0),
        lambda: detectable_difference(-1.0),
        lambda: detectable_difference(1.0, power=1.0),
        lambda: standard_error_of(1.0, 0.0),
    ],
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
