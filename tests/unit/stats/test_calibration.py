import numpy as np
import pytest

from prefopt.stats.calibration import (
    both_orders,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    pair_nll,
    pair_probabilities,
    reliability,
)


def calibrated(count: int, seed: int = 0) -> tuple[list[float], list[float]]:
    """Margins whose σ is the chance that the first of the pair is preferred."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(0, 2, size=count)
    return margins.tolist(), (generator.uniform(size=count) < 1 / (1 + np.exp(-margins))).astype(float).tolist()


def test_known_answers() -> None:
    # Bins [0.2, 0.3): one of two came true at 0.25; [0.8, 0.9): all of two at 0.85.
    p, y = [0.25, 0.25, 0.85, 0.85], [1.0, 0.0, 1.0, 1.0]
    assert [(b.size, b.accuracy) for b in reliability(p, y)] == [(2, 0.5), (2, 1.0)]
    assert expected_calibration_error(p, y) == pytest.approx(0.5 * 0.25 + 0.5 * 0.15)
    assert brier_score(p, y) == pytest.approx((0.75**2 + 0.25**2 + 2 * 0.15**2) / 4)
    assert pair_nll([0.0, 0.0], [1.0, 0.0]) == pytest.approx(np.log(2))
    assert pair_nll([800.0], [0.0]) == pytest.approx(800.0)  # no overflow


def test_certainty_is_in_the_last_bin() -> None:
    assert reliability([1.0, 0.0], [1.0, 0.0]) == [(0.0, 0.1, 1, 0.0, 0.0), (0.9, 1.0, 1, 1.0, 1.0)]


def test_calibrated_margins_need_no_temperature_and_scaled_ones_their_scale() -> None:
    margins, outcomes = calibrated(20_000)
    temperature = fit_temperature(margins, outcomes)
    assert temperature == pytest.approx(1.0, abs=0.05)
    assert fit_temperature([3 * m for m in margins], outcomes) == pytest.approx(3 * temperature, rel=1e-3)
    assert expected_calibration_error(pair_probabilities(margins), outcomes) < 0.01
    loud = [3 * m for m in margins]
    before = expected_calibration_error(pair_probabilities(loud), outcomes)
    after = expected_calibration_error(pair_probabilities(loud, fit_temperature(loud, outcomes)), outcomes)
    assert before > 0.1 and after < 0.01
    assert pair_nll(loud, outcomes, 3 * temperature) < pair_nll(loud, outcomes)


def test_a_temperature_changes_no_ranking() -> None:
    margins, _ = calibrated(50)
    for temperature in (0.2, 5.0):
        assert np.argsort(pair_probabilities(margins, temperature)).tolist() == np.argsort(margins).tolist()


def test_both_orders_are_symmetric() -> None:
    margins, outcomes = both_orders([1.0, -2.0], [1.0, 0.25])
    assert margins == [1.0, -2.0, -1.0, 2.0] and outcomes == [1.0, 0.25, 0.0, 0.75]


@pytest.mark.parametrize(
    "call",
    [
        lambda: reliability([], []),
        lambda: reliability([1.2], [1.0]),
        lambda: brier_score([0.5], [1.0, 0.0]),
        lambda: pair_probabilities([1.0], 0.0),
        lambda: fit_temperature([1.0], [1.0, 0.0]),
        lambda: fit_temperature([float("nan")], [1.0]),
    ],
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
