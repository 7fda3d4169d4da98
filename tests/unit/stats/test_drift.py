import numpy as np
import pytest

from prefopt.stats.drift import kolmogorov_smirnov, population_stability


@pytest.mark.parametrize("size", [60, 200, 1000])
def test_false_alarms_are_rare_at_every_sample_size(size: int) -> None:
    generator = np.random.default_rng(size)
    alarms = customary = differing = 0
    for _ in range(400):
        one, two = (generator.normal(size=size).tolist() for _ in range(2))
        found = population_stability(one, two)
        alarms += found.found
        customary += found.value > 0.1
        differing += kolmogorov_smirnov(one, two).found
    assert alarms / 400 <= 0.025 and differing / 400 <= 0.08
    if size == 60:
        assert customary / 400 > 0.5  # the fixed threshold would be wrong more often than not


def test_a_shift_is_found() -> None:
    generator = np.random.default_rng(1)
    reference, moved = generator.normal(size=1000).tolist(), generator.normal(0.5, 1, size=1000).tolist()
    assert population_stability(reference, moved).found and kolmogorov_smirnov(reference, moved).found


def test_known_answers() -> None:
    # Four quantile bins of 100 each against 200, 100, 50, 50, with half a count in each.
    reference = list(np.repeat([1.0, 2.0, 3.0, 4.0], 100))
    current = list(np.repeat([1.0, 2.0, 3.0, 4.0], [200, 100, 50, 50]))
    p, q = np.array([100.5] * 4) / 402, np.array([200.5, 100.5, 50.5, 50.5]) / 402
    assert population_stability(reference, current, bins=4).value == pytest.approx(((p - q) * np.log(p / q)).sum())
    found = kolmogorov_smirnov(reference, current)
    assert found.value == pytest.approx(0.25) and found.threshold == pytest.approx(1.358 * (2 / 400) ** 0.5, rel=1e-3)


def test_a_constant_does_not_drift_from_itself() -> None:
    found = population_stability([1.0] * 50, [1.0] * 80)
    assert found.value < 0.01 and not found.found


@pytest.mark.parametrize("test", [population_stability, kolmogorov_smirnov])
def test_what_makes_no_sense_is_refused(test) -> None:
    for one, two in (([], [1.0]), ([1.0], []), ([float("inf")], [1.0])):
        with pytest.raises(ValueError):
            test(one, two)
