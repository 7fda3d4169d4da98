import math
from itertools import combinations

import numpy as np
import pytest

from prefopt.stats.curves import best_of_n_kl, best_of_n_mean, fit_best_of_n_law, fit_rl_law


def test_best_of_n_is_the_mean_over_all_choices() -> None:
    scores, gold = [0.3, -1.0, 2.0, 0.5, 1.5, -0.2], [1.0, 2.0, -3.0, 0.0, 5.0, 4.0]
    for n in range(1, 7):
        chosen = [max(c, key=lambda i: scores[i]) for c in combinations(range(6), n)]
        assert best_of_n_mean(scores, scores, n) == pytest.approx(np.mean([scores[i] for i in chosen]))
        assert best_of_n_mean(scores, gold, n) == pytest.approx(np.mean([gold[i] for i in chosen]))


def test_ties_are_equally_likely_to_be_chosen() -> None:
    assert best_of_n_mean([1.0, 1.0, 0.0], [4.0, 8.0, 100.0], 3) == pytest.approx(6.0)
    assert best_of_n_mean([1.0, 1.0, 0.0], [8.0, 4.0, 100.0], 2) == pytest.approx(6.0)


def test_it_is_unbiased() -> None:
    generator = np.random.default_rng(0)
    found = [best_of_n_mean(*[generator.normal(size=16).tolist()] * 2, 4) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(1.0294, abs=0.03)  # mean of the largest of four normal deviates


def test_kl_of_best_of_n_by_enumeration() -> None:
    # The best of n of a large uniform set: the density at rank u is n u^(n-1).
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 16):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float((density * np.log(density)).mean()), abs=1e-3)


def test_laws_recover_their_parameters() -> None:
    d = np.linspace(0.2, 4, 12)
    bon = fit_best_of_n_law(d.tolist(), (d * (1.5 - 0.2 * d)).tolist())
    assert (bon.alpha, bon.beta, bon.r_squared) == pytest.approx((1.5, 0.2, 1.0))
    assert bon.peak == pytest.approx(1.5 / 0.4)
    rl = fit_rl_law(d.tolist(), (d * (1.0 - 0.8 * np.log(d))).tolist())
    assert (rl.alpha, rl.beta, rl.r_squared) == pytest.approx((1.0, 0.8, 1.0))
    assert rl.peak == pytest.approx(math.exp(1 / 0.8 - 1))
    grid = np.linspace(0.05, 10, 100_000)
    assert rl.peak == pytest.approx(grid[np.argmax(grid * (1.0 - 0.8 * np.log(grid)))], abs=1e-3)
    assert fit_best_of_n_law([0.0, 1.0, 2.0], [0.0, 1.0, 2.5]).peak is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: best_of_n_kl(0),
        lambda: best_of_n_mean([1.0], [1.0], 2),
        lambda: best_of_n_mean([1.0], [1.0, 2.0], 1),
        lambda: fit_best_of_n_law([0.0, 1.0], [0.0, 1.0]),
        lambda: fit_rl_law([1.0, 2.0], [1.0]),
    ],
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
