import numpy as np
import pytest

from prefopt.stats.agreement import cohen_kappa, interval, krippendorff_alpha, mean_correlation

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", part C: 4 observers, 12 units, missing data.
TEXTBOOK = {
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}
UNITS = [{rater: labels[unit] for rater, labels in TEXTBOOK.items() if labels[unit] is not None} for unit in range(12)]


def test_alpha_of_the_textbook() -> None:
    assert krippendorff_alpha(UNITS) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(UNITS, interval) == pytest.approx(0.849, abs=5e-4)


def test_kappa_known_answers() -> None:
    # Cohen's table 20, 5 / 10, 15: p_o 0.7, p_e 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == 1.0 and cohen_kappa(["a"] * 3, ["a"] * 3) == 1.0


def test_independent_labels_agree_as_chance_has_it() -> None:
    generator = np.random.default_rng(0)
    one, two = (generator.integers(0, 3, size=20_000).tolist() for _ in range(2))
    assert cohen_kappa(one, two) == pytest.approx(0, abs=0.02)
    units = [{"a": a, "b": b} for a, b in zip(one[:3000], two[:3000], strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0, abs=0.05)


def test_opposites_are_worse_than_chance() -> None:
    units = [{"a": n % 2, "b": 1 - n % 2} for n in range(20)]
    assert krippendorff_alpha(units) < -0.9 and cohen_kappa([0, 1] * 5, [1, 0] * 5) == -1.0


@pytest.mark.parametrize(
    "call", [lambda: cohen_kappa([], []), lambda: cohen_kappa([1], [1, 2]), lambda: krippendorff_alpha([{"a": 1}])]
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()


def test_the_mean_correlation_is_that_of_numpy_and_of_a_constant_there_is_none() -> None:
    series = np.random.default_rng(0).normal(size=(3, 20))
    expected = np.corrcoef(series)[np.triu_indices(3, 1)].mean()
    assert mean_correlation(series.tolist()) == pytest.approx(expected)
    same = series[0].tolist()
    assert mean_correlation([same, same]) == pytest.approx(1) and mean_correlation([same, [2.0] * 20]) == 0
    with pytest.raises(ValueError, match="two series"):
        mean_correlation([same])
