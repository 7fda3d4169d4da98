"""A scorer is caught by exactly the changes that it falls for, and by no other."""

import random
from collections.abc import Callable, Sequence

import pytest

from prefopt.errors import DataError
from prefopt.evaluation.findings import Findings, score_pairs_that_fit, score_what_fits
from prefopt.evaluation.robustness import (
    TRANSFORMS,
    Transform,
    difference_of_means,
    extra_whitespace,
    robustness,
    typos,
)
from prefopt.records import Message, PreferencePair, Prompt, Score
from prefopt.stats.intervals import bootstrap_mean

NAMES = [*(transform.name for transform in TRANSFORMS), "answer_order"]
ADDITIONS = [transform.name for transform in TRANSFORMS if not transform.both]


class TextScorer:
    """Scores each answer by a function of its text alone."""

    name = "text"

    def __init__(self, value: Callable[[str], float]) -> None:
        self._value = value

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        return [Score(float(self._value(text))) for text in completions]


class EarlyScorer:
    """Scores whatever comes first in its batch highest."""

    name = "early"

    def __init__(self, unit: float = 1.0) -> None:
        self._unit = unit

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        return [Score(-self._unit * i) for i in range(len(completions))]


class NoisyScorer:
    """Scores nothing twice in the same way."""

    name = "noisy"

    def __init__(self) -> None:
        self._rng = random.Random(0)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        return [Score(self._rng.random()) for _ in completions]


class ShortSighted(TextScorer):
    """Refuses answers above a length, all of a call for one."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        if any(len(text) > 120 for text in completions):
            raise DataError("an answer does not fit")
        return super().score(prompts, completions)


def prompt(number: int) -> Prompt:
    return (Message("user", f"Question number {number}?"),)


def pair(number: int, chosen: str, rejected: str, probability: float = 1.0) -> PreferencePair:
    return PreferencePair(prompt(number), chosen, rejected, probability)


def capital_pairs(n: int = 40) -> list[PreferencePair]:
    return [pair(i, f"Alpha Beta GAMMA number{i}", f"alpha beta gamma number{i} delta epsilon") for i in range(n)]


def longer_pairs(n: int = 40) -> list[PreferencePair]:
    return [pair(i, f"A somewhat longer answer, {i} of them.", f"Short answer {i}.") for i in range(n)]


def flips(findings: Findings) -> dict[str, float]:
    return {name: findings.metrics[f"robustness/{name}/flip_rate/mean"] for name in NAMES}


def capitals(text: str) -> float:
    return sum(letter.isupper() for letter in text)


def test_a_counter_of_capitals_falls_for_case_and_not_for_white_space() -> None:
    found = robustness(capital_pairs(), TextScorer(capitals), seed=0)
    rates = flips(found)
    assert rates["lower_case"] == 0.5  # all scores are 0 then: ties
    assert rates["upper_case"] == 1.0  # the rejected answer has more letters
    assert rates["extra_whitespace"] == rates["typos"] == rates["answer_order"] == 0.0
    assert found.metrics["robustness/worst_flip_rate"] == 1.0
    assert found.metrics["robustness/upper_case/accuracy_drop/mean"] == 1.0
    assert found.metrics["robustness/lower_case/score_shift/ci_high"] < 0
    assert found.metrics["robustness/extra_whitespace/score_shift/mean"] == 0.0


def test_a_ruler_of_length_falls_for_what_is_appended() -> None:
    rates = flips(robustness(longer_pairs(), TextScorer(len), seed=0))
    assert all(rates[name] == 1.0 for name in ADDITIONS)
    assert rates["lower_case"] == rates["upper_case"] == rates["answer_order"] == 0.0


def test_only_the_rejected_answer_of_the_label_gets_an_addition() -> None:
    swapped = [pair(i, p.rejected, p.chosen, probability=0.0) for i, p in enumerate(longer_pairs())]
    straight = robustness(longer_pairs(), TextScorer(len), seed=0)
    assert robustness(swapped, TextScorer(len), seed=0).metrics == pytest.approx(straight.metrics)


def test_the_interval_of_no_flips_is_not_a_point() -> None:
    metrics = robustness(longer_pairs(), TextScorer(len), seed=0).metrics
    assert metrics["robustness/upper_case/flip_rate/ci_low"] == 0.0
    assert 0.05 < metrics["robustness/upper_case/flip_rate/ci_high"] < 0.15


def test_many_pairs_of_few_prompts_say_less() -> None:
    pairs = longer_pairs()
    few = [pair(i % 4, p.chosen, p.rejected) for i, p in enumerate(pairs)]
    name = "robustness/upper_case/flip_rate/ci_high"
    scorer = TextScorer(len)
    assert robustness(few, scorer, seed=0).metrics[name] > robustness(pairs, scorer, seed=0).metrics[name] + 0.2


def test_a_scorer_that_heeds_the_order_is_caught() -> None:
    found = robustness(longer_pairs(), EarlyScorer(), seed=0)
    assert flips(found)["answer_order"] == 1.0
    assert found.metrics["robustness/worst_flip_rate"] == 1.0
    assert found.metrics["robustness/answer_order/max_shift"] > 1.0
    assert robustness(longer_pairs(), TextScorer(len), 0).metrics["robustness/answer_order/max_shift"] == 0.0


def test_shifts_are_in_standard_deviations_of_the_scores() -> None:
    pairs = [pair(i, "A" * 3 + str(i % 10), "A" + str(i % 10)) for i in range(20)]
    metrics = robustness(pairs, TextScorer(capitals), seed=0).metrics  # scores 3 and 1: a standard deviation of 1
    assert metrics["robustness/lower_case/score_shift/mean"] == pytest.approx(-2.0)
    for small, large in (
        (TextScorer(len), TextScorer(lambda text: 8 * len(text))),
        (EarlyScorer(), EarlyScorer(unit=8.0)),
    ):
        expected = robustness(longer_pairs(), small, seed=0).metrics
        assert robustness(longer_pairs(), large, seed=0).metrics == pytest.approx(expected)


def test_a_text_that_stays_as_it_is_is_not_scored_again() -> None:
    pairs = [pair(i, f"yes it is {i}", f"no it is not {i}") for i in range(20)]
    found = robustness(pairs, NoisyScorer(), seed=0)
    assert flips(found)["lower_case"] == found.metrics["robustness/lower_case/score_shift/mean"] == 0.0
    assert found.tables[0].rows[1][3] == "0%"
    assert flips(found)["answer_order"] > 0


def test_everything_follows_the_seed() -> None:
    pairs = [pair(i, f"several different words in answer {i}", f"quite another answer is this {i}") for i in range(30)]
    scorer = TextScorer(hash_value)
    assert robustness(pairs, scorer, seed=1) == robustness(pairs, scorer, seed=1)
    name = "robustness/typos/score_shift/mean"  # no interval: the texts themselves are others
    assert robustness(pairs, scorer, seed=1).metrics[name] != robustness(pairs, scorer, seed=2).metrics[name]


def hash_value(text: str) -> float:
    return random.Random(text).random()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)
def test_a_transform_follows_its_generator_and_takes_any_text(transform: Transform) -> None:
    for text in ("", "a", " \n ", "ooooo", "Ünïcödé 文字 straße", "The quick brown fox. " * 30):
        changed = transform.change(text, random.Random(3))
        assert changed == transform.change(text, random.Random(3))


def test_typos_misspell_a_twentieth_of_the_words_and_leave_their_first_letters() -> None:
    text = " ".join(f"{first}{'word' * 2}" for first in "abcdefghij" * 10)
    changed = typos(text, random.Random(0))
    pairs = list(zip(text.split(), changed.split(), strict=True))
    assert sum(a != b for a, b in pairs) == 5
    assert all(a[0] == b[0] and len(a) - len(b) in (0, 1) for a, b in pairs)
    assert typos("12345 67890 of it", random.Random(0)) == "12345 67890 of it"
    assert typos("aaaa", random.Random(0)) == "aaa"


def test_white_space_is_all_that_extra_white_space_changes() -> None:
    text = "One two  three\n  four five six seven eight nine ten."
    for seed in range(20):
        changed = extra_whitespace(text, random.Random(seed))
        assert changed != text and changed.split() == text.split()
        assert changed.splitlines()[1].startswith("  four")


def test_answers_that_differ_by_case_alone_are_not_made_equal() -> None:
    pairs = [pair(i, f"YES {i}", f"yes {i}") for i in range(20)]
    rates = flips(robustness(pairs, TextScorer(capitals), seed=0))
    assert rates["lower_case"] == rates["upper_case"] == 0.0


def test_ties_in_the_labels_are_left_out() -> None:
    ties = [pair(100 + i, "short", "much longer than the other", probability=0.5) for i in range(20)]
    scorer = TextScorer(len)
    assert robustness([*longer_pairs(), *ties], scorer, seed=0) == robustness(longer_pairs(), scorer, seed=0)
    with pytest.raises(ValueError, match="pairs: none of 20"):
        robustness(ties, scorer, seed=0)
    with pytest.raises(ValueError, match="ood: none of 20"):
        robustness(longer_pairs(), scorer, seed=0, ood=ties)


def test_what_cannot_be_measured_has_no_metric() -> None:
    constant = robustness(longer_pairs(), TextScorer(lambda text: 0.1), seed=0)
    assert not [name for name in constant.metrics if "flip_rate" in name or "shift" in name]
    assert constant.metrics["robustness/typos/accuracy_drop/mean"] == 0.0
    assert {row[4] for row in constant.tables[0].rows} == {"–"}


def test_a_pair_whose_changed_text_does_not_fit_is_left_out_of_that_change_alone() -> None:
    pairs = longer_pairs()
    pairs[7] = pair(7, "x" * 119, "Short answer.")  # two characters of white space are too many
    found = robustness(pairs, ShortSighted(len), seed=0)
    rows = {row[0]: row for row in found.tables[0].rows}
    assert rows["typos"][2] == "40" and rows["extra whitespace"][2] == "39" and rows["filler"][2] == "0"
    assert "robustness/filler/flip_rate/mean" not in found.metrics
    texts = ["a", "b" * 200, "cc", "d" * 200, "e" * 300]
    assert score_what_fits(ShortSighted(len), [prompt(0)] * 5, texts) == [1.0, None, 2.0, None, None]
    long = [pair(1, "b" * 200, "b"), pair(2, "cc", "c" * 200), pair(3, "ddd", "d")]
    scored = score_pairs_that_fit(long, ShortSighted(len))
    assert [(item.pair, item.chosen, item.rejected) for item in scored] == [(long[2], 3.0, 1.0)]


def test_every_change_has_a_row_and_every_cell_a_column() -> None:
    found = robustness(longer_pairs(), TextScorer(len), seed=0, ood=capital_pairs())
    assert [row[0].replace(" ", "_") for row in found.tables[0].rows] == NAMES
    assert all(len(row) == len(table.columns) for table in found.tables for row in table.rows)


def test_a_planted_gap_to_another_source_is_found() -> None:
    shorter = [pair(i, f"Short {i}", f"A longer answer that is worse {i}") for i in range(15)]
    ood = [*shorter, *(pair(50 + i, p.chosen, p.rejected) for i, p in enumerate(longer_pairs(15)))]
    metrics = robustness(longer_pairs(), TextScorer(len), seed=0, ood=ood).metrics
    assert metrics["robustness/ood/accuracy/mean"] == 0.5
    assert metrics["robustness/ood/accuracy_gap/mean"] == 0.5
    assert 0.2 < metrics["robustness/ood/accuracy_gap/ci_low"] < 0.5 < metrics["robustness/ood/accuracy_gap/ci_high"]
    same = robustness(longer_pairs(), TextScorer(len), seed=0, ood=longer_pairs()).metrics
    assert same["robustness/ood/accuracy_gap/mean"] == 0.0


def test_the_interval_of_a_difference_is_wider_than_that_of_either_mean() -> None:
    rng = random.Random(0)
    first, second = [rng.gauss(1, 1) for _ in range(200)], [rng.gauss(0, 1) for _ in range(100)]
    found = difference_of_means(first, range(200), second, range(100))
    assert found.low < found.estimate < found.high
    widths = [bootstrap_mean(values).high - bootstrap_mean(values).low for values in (first, second)]
    assert found.high - found.low == pytest.approx((widths[0] ** 2 + widths[1] ** 2) ** 0.5, rel=0.1)
    clustered = difference_of_means(first, [i // 10 for i in range(200)], second, range(100))
    assert clustered.estimate == found.estimate and clustered != found
