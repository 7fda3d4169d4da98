import numpy as np
import pytest

from prefopt.stats.length_control import fit_length_preference, length_controlled_win_rate


def judged(bias: float, quality: float, count: int = 4000, seed: int = 0) -> tuple[list[float], list[float]]:
    """Outcomes by a judge who likes long answers, of a policy that writes 10 tokens more on average."""
    generator = np.random.default_rng(seed)
    extra = generator.normal(10, 10, size=count)
    chance = 1 / (1 + np.exp(-(quality + bias * np.tanh(extra / extra.std()))))
    return (generator.uniform(size=count) < chance).astype(float).tolist(), extra.tolist()


def test_a_planted_length_effect_is_removed() -> None:
    outcomes, extra = judged(bias=2.0, quality=0.0)
    assert np.mean(outcomes) > 0.65
    found = length_controlled_win_rate(outcomes, extra, resamples=100)
    assert found.low <= 0.5 <= found.high and found.estimate == pytest.approx(0.5, abs=0.04)


def test_quality_stays_where_length_plays_no_part() -> None:
    outcomes, extra = judged(bias=0.0, quality=1.0)
    found = length_controlled_win_rate(outcomes, extra, resamples=100)
    assert found.estimate == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)
    same = length_controlled_win_rate(outcomes, [0.0] * len(outcomes), resamples=50)
    assert same.estimate == pytest.approx(np.mean(outcomes), abs=0.001)


def test_swapping_the_sides_gives_the_complement() -> None:
    outcomes, extra = judged(bias=1.0, quality=0.4, count=500)
    found = length_controlled_win_rate(outcomes, extra, resamples=20)
    swapped = length_controlled_win_rate([1 - o for o in outcomes], [-e for e in extra], resamples=20)
    assert swapped.estimate == pytest.approx(1 - found.estimate, abs=1e-4)


def test_the_interval_covers_at_its_level() -> None:
    covered = 0
    for seed in range(150):
        outcomes, extra = judged(bias=1.0, quality=0.5, count=200, seed=seed)
        found = length_controlled_win_rate(outcomes, extra, resamples=120, seed=seed)
        covered += found.low <= 1 / (1 + np.exp(-0.5)) <= found.high
    assert 0.89 <= covered / 150 <= 0.99


def test_always_winning_is_finite() -> None:
    found = length_controlled_win_rate([1.0] * 20, list(range(20)), resamples=20)
    assert 0.9 < found.estimate <= 1.0


@pytest.mark.parametrize("arguments", [([], []), ([1.0], [1.0, 2.0]), ([2.0], [1.0]), ([1.0], [float("nan")])])
def test_what_makes_no_sense_is_refused(arguments) -> None:
    with pytest.raises(ValueError):
        length_controlled_win_rate(*arguments)


def test_a_ruler_is_fitted_to_preferences_in_whatever_order_they_are_told() -> None:
    outcomes, extra = judged(bias=2.0, quality=0.0)
    extra = (np.array(extra) - 10).tolist()
    outcomes = (
        np.random.default_rng(1).uniform(size=4000) < 1 / (1 + np.exp(-2 * np.tanh(np.array(extra) / 10)))
    ) * 1.0
    found = fit_length_preference(outcomes, extra)
    assert found.coefficient == pytest.approx(2.0, abs=0.2) and found.spread == pytest.approx(10, abs=0.5)
    turned = fit_length_preference([1 - y for y in outcomes], [-gap for gap in extra])
    assert turned.coefficient == pytest.approx(found.coefficient, abs=1e-4)
    assert found.logits([0.0, 1e6]) == pytest.approx([0.0, found.coefficient])
    assert fit_length_preference([1.0] * 5, [0.0] * 5).logits([3.0]) == pytest.approx([0.0], abs=1e-6)


def test_pairs_without_weight_do_not_teach_the_ruler() -> None:
    outcomes, extra = [1.0, 1.0, 0.0, 0.0], [5.0, -5.0, 5.0, -5.0]
    assert fit_length_preference(outcomes, extra).coefficient == pytest.approx(0, abs=1e-6)
    assert fit_length_preference(outcomes, extra, [1, 0, 0, 1]).coefficient > 1
    with pytest.raises(ValueError, match="one weight above 0"):
        fit_length_preference(outcomes, extra, [0, 0, 0, 0])
