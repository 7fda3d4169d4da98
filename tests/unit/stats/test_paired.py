from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from prefopt.stats.intervals import bootstrap_mean
from prefopt.stats.paired import holm, mcnemar, paired_difference, permutation_test, sign_flip_test


def test_mcnemar_is_the_binomial_tail_of_the_pairs_that_differ() -> None:
    # Two-sided exact: 2 (C(10,0) + C(10,1) + C(10,2)) / 2^10.
    assert mcnemar(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0


def test_sign_flips_are_all_counted_when_they_are_few() -> None:
    values = [1.0, 2.0, -0.5, 3.0]
    flips = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=4)]
    assert sign_flip_test(values) == sum(f >= sum(values) for f in flips) / 16
    assert sign_flip_test([1.0] * 5) == 2 / 32
    assert sign_flip_test([0.0] * 30) == 1.0


def test_random_flips_agree_with_scipy() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, size=40)
    expected = scipy_stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert sign_flip_test(values.tolist(), resamples=20_000) == pytest.approx(expected, abs=0.01)


def test_the_sign_flip_test_keeps_its_level_with_clusters() -> None:
    generator = np.random.default_rng(2)
    clustered = naive = 0
    clusters = np.repeat(np.arange(30), 4).tolist()
    for trial in range(400):
        values = (generator.normal(size=30)[:, None] + 0.3 * generator.normal(size=(30, 4))).ravel().tolist()
        clustered += sign_flip_test(values, clusters, resamples=400, seed=trial) <= 0.05
        naive += sign_flip_test(values, resamples=400, seed=trial) <= 0.05
    assert clustered / 400 <= 0.08 and naive / 400 > 0.15


def test_the_permutation_test_agrees_with_scipy_and_keeps_its_level() -> None:
    generator = np.random.default_rng(3)
    one, two = generator.normal(0.5, 1, 25).tolist(), generator.normal(0, 1, 30).tolist()
    expected = scipy_stats.permutation_test(
        (one, two),
        lambda a, b: abs(np.mean(a) - np.mean(b)),
        alternative="greater",
        n_resamples=9999,
        rng=np.random.default_rng(4),
    ).pvalue
    assert permutation_test(one, two) == pytest.approx(expected, abs=0.015)
    hits = sum(
        permutation_test(generator.normal(size=12).tolist(), generator.normal(size=12).tolist(), resamples=200) <= 0.05
        for _ in range(300)
    )
    assert hits / 300 <= 0.085


def test_a_paired_interval_is_narrower_where_prompts_are_hard_for_both() -> None:
    generator = np.random.default_rng(5)
    hardness = generator.normal(size=200)
    first = (hardness + 0.2 + 0.3 * generator.normal(size=200)).tolist()
    second = (hardness + 0.3 * generator.normal(size=200)).tolist()
    paired = paired_difference(first, second)
    alone = bootstrap_mean(first)
    assert paired.difference.high - paired.difference.low < 0.5 * (alone.high - alone.low)
    assert paired.shown and paired.p_value < 0.01 and paired.clusters == 200
    swapped = paired_difference(second, first)
    assert swapped.difference.estimate == pytest.approx(-paired.difference.estimate)
    assert swapped.p_value == paired.p_value


def test_holm_known_answer() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_keeps_the_chance_of_any_false_rejection() -> None:
    draws = np.random.default_rng(6).uniform(size=(4000, 5))
    assert np.mean([min(holm(row.tolist())) <= 0.05 for row in draws]) <= 0.06
    assert np.mean(draws.min(1) <= 0.05) > 0.2


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_difference([1.0], [1.0, 2.0]),
        lambda: sign_flip_test([]),
        lambda: permutation_test([], [1.0]),
        lambda: mcnemar(-1, 2),
        lambda: holm([1.5]),
    ],
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
