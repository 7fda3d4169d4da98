import numpy as np
import pytest

from prefopt.stats.intervals import bootstrap_crossed, bootstrap_mean, bootstrap_ratio, wilson


def test_wilson_known_answer() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263.
    rate, low, high = wilson(81, 263)
    assert (round(rate, 4), round(low, 4), round(high, 4)) == (0.308, 0.2553, 0.3662)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 1), (0.5, 1)])
def test_wilson_stays_in_range_and_holds_the_estimate(successes: float, trials: int) -> None:
    rate, low, high = wilson(successes, trials)
    assert 0 <= low <= rate <= high <= 1 and low < high


def test_wilson_covers_at_its_level() -> None:
    generator = np.random.default_rng(0)
    for rate, size in ((0.5, 256), (0.05, 256), (0.3, 80)):
        hits = 0
        for count in generator.binomial(size, rate, size=8000):
            interval = wilson(int(count), size)
            hits += interval.low <= rate <= interval.high
        assert abs(hits / 8000 - 0.95) <= 0.015, rate


def test_bootstrap_covers_at_its_level_with_clusters() -> None:
    generator = np.random.default_rng(1)
    clustered = naive = 0
    trials, clusters = 2000, np.repeat(np.arange(120), 3).tolist()
    for trial in range(trials):
        values = (generator.normal(size=120)[:, None] + 0.3 * generator.normal(size=(120, 3))).ravel().tolist()
        _, low, high = bootstrap_mean(values, clusters, resamples=500, seed=trial)
        clustered += low <= 0 <= high
        if trial < 300:
            _, low, high = bootstrap_mean(values, resamples=500, seed=trial)
            naive += low <= 0 <= high
    assert abs(clustered / trials - 0.95) <= 0.015
    assert naive / 300 < 0.85  # taking samples of one prompt as independent is overconfident


def test_bootstrap_does_not_depend_on_how_prompts_are_named() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert bootstrap_mean(values, ["a", "a", "b", "b"]) == bootstrap_mean(values, [7, 7, 1, 1])


def test_bootstrap_of_a_constant_is_a_point() -> None:
    assert bootstrap_mean([3.0] * 5) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 0),
        lambda: wilson(3, 2),
        lambda: wilson(1, 2, level=1.0),
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([float("nan")]),
        lambda: bootstrap_mean([1.0], ["a", "b"]),
    ],
)
def test_what_is_out_of_range_is_refused(call) -> None:
    with pytest.raises(ValueError, match=r"need|level|clusters"):
        call()


def test_a_ratio_of_means_known_answer_and_its_limits() -> None:
    ratio, low, high = bootstrap_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert ratio == low == high == 0.5  # the same ratio everywhere leaves nothing to chance
    # Denominators that were not measured are left out of the mean, not counted as 0.
    ratio, low, high = bootstrap_ratio([1.0, 1.0, 1.0, 1.0], [4.0, np.nan, 2.0, np.nan])
    assert ratio == pytest.approx(1 / 3) and 0.25 - 1e-9 <= low <= ratio <= high <= 0.5 + 1e-9


def test_a_ratio_of_means_covers_at_its_level() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(400):
        room = generator.normal(1.5, 0.4, size=80)
        gain = 0.3 * room + generator.normal(0, 0.8, size=80)
        room[40:] = np.nan
        _, low, high = bootstrap_ratio(gain.tolist(), room.tolist(), resamples=600, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(
    ("above", "below"), [([], []), ([1.0], [1.0, 2.0]), ([np.nan], [1.0]), ([1.0], [np.nan]), ([1.0, 1.0], [1.0, -1.0])]
)
def test_a_ratio_of_what_is_not_there_is_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(ValueError, match=r"need as many|not measured"):
        bootstrap_ratio(above, below)


def test_a_crossed_bootstrap_is_that_of_the_columns_where_there_is_one_row() -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    crossed, plain = bootstrap_crossed([values]), bootstrap_mean(values)
    assert crossed.estimate == pytest.approx(plain.estimate)
    assert (crossed.low, crossed.high) == pytest.approx((plain.low, plain.high), abs=0.03)


def test_a_crossed_bootstrap_covers_where_seeds_and_prompts_both_vary() -> None:
    generator = np.random.default_rng(1)
    crossed = prompts_only = 0
    for trial in range(300):
        table = 0.5 * generator.normal(size=(8, 1)) + generator.normal(size=(1, 60)) + generator.normal(size=(8, 60))
        found = bootstrap_crossed(table.tolist(), resamples=500, seed=trial)
        crossed += found.low <= 0 <= found.high
        found = bootstrap_mean(table.mean(0).tolist(), resamples=500, seed=trial)
        prompts_only += found.low <= 0 <= found.high
    assert crossed / 300 >= 0.9
    assert prompts_only / 300 < 0.85  # seeds are part of the noise


@pytest.mark.parametrize("values", [[], [[]], [[1.0], [1.0, 2.0]], [[float("nan")]]])
def test_a_table_that_is_none_is_refused(values: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        bootstrap_crossed(values)
