"""A ruler of length leads over length by nothing; what reads for meaning leads, and no probe beats it."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr

from prefopt.errors import DataError
from prefopt.evaluation.bias import (
    FLATTERY,
    MOST_PROBED,
    PROBES,
    REFUSAL,
    WordRuler,
    antisymmetric_spearman,
    bias,
    first_sentence,
    last_question,
)
from prefopt.records import Message, PreferencePair, Prompt, Score


class TextScorer:
    """Scores each answer by a function of its text alone; keeps what it was asked."""

    name = "text"

    def __init__(self, value: Callable[[str], float]) -> None:
        self._value = value
        self.asked: list[str] = []

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        self.asked.extend(completions)
        return [Score(float(self._value(text))) for text in completions]


def pair(number: int, chosen: str, rejected: str, probability: float = 1.0) -> PreferencePair:
    return PreferencePair((Message("user", f"Question number {number}?"),), chosen, rejected, probability)


def pairs_where_length_says(share: float, n: int = 100) -> list[PreferencePair]:
    """The preferred answer says `right`, and is the longer one in this share of pairs."""
    rng = random.Random(0)
    found = []
    for i in range(n):
        short, long = "so" * rng.randint(1, 5), "so" * rng.randint(8, 20)
        better, worse = (long, short) if i < share * n else (short, long)
        found.append(pair(i, f"right {better} {i}.", f"wrong {worse} {i}."))
    return found


def knows(text: str) -> float:
    return float("right" in text)


def test_a_ruler_of_length_leads_over_length_by_nothing() -> None:
    for share in (0.3, 0.5, 0.8):
        metrics = bias(pairs_where_length_says(share), TextScorer(len)).metrics
        assert [metrics[f"bias/over_length/{end}"] for end in ("mean", "ci_low", "ci_high")] == [0.0, 0.0, 0.0]
        assert metrics["bias/length_accuracy/mean"] == pytest.approx(share)
        assert metrics["bias/agrees_with_length/mean"] == 1.0
        assert metrics["bias/length_correlation/mean"] == pytest.approx(1.0)


def test_a_scorer_that_knows_leads_where_length_says_nothing() -> None:
    metrics = bias(pairs_where_length_says(0.5), TextScorer(knows)).metrics
    assert metrics["bias/over_length/mean"] == pytest.approx(0.5) and metrics["bias/over_length/ci_low"] > 0.3
    assert metrics["bias/agrees_with_length/mean"] == pytest.approx(0.5)
    assert metrics["bias/length_correlation/ci_low"] < 0 < metrics["bias/length_correlation/ci_high"]


def test_the_direction_of_the_ruler_comes_from_the_training_pairs() -> None:
    held_out = pairs_where_length_says(0.2)
    assert bias(held_out, TextScorer(len)).metrics["bias/length_accuracy/mean"] == pytest.approx(0.2)
    turned = bias(held_out, TextScorer(lambda text: -len(text)), pairs_where_length_says(0.3)).metrics
    assert turned["bias/length_accuracy/mean"] == pytest.approx(0.8)
    assert turned["bias/over_length/mean"] == turned["bias/over_length/ci_high"] == 0.0
    wrong = bias(held_out, TextScorer(len), pairs_where_length_says(0.9)).metrics
    assert wrong["bias/length_accuracy/mean"] == pytest.approx(0.2)


def test_the_bag_of_words_learns_a_planted_word() -> None:
    rng = random.Random(1)
    words = [f"word{i}" for i in range(50)]

    def planted(number: int) -> PreferencePair:
        noise = [" ".join(rng.choices(words, k=8)) for _ in range(2)]
        return pair(number, f"{noise[0]} gladly {number}", f"{noise[1]} {number}")

    train, held_out = [planted(i) for i in range(200)], [planted(1000 + i) for i in range(100)]
    ruler = WordRuler(train)
    assert ruler.weights.max() == ruler.weights[ruler.columns["gladly"]] > 1.0
    metrics = bias(held_out, TextScorer(lambda text: "gladly" in text), train).metrics
    assert metrics["bias/words_accuracy/mean"] > 0.95
    assert metrics["bias/over_words/mean"] == pytest.approx(1.0 - metrics["bias/words_accuracy/mean"])
    blind = bias(held_out, TextScorer(lambda text: sum(map(ord, text)) % 97), train).metrics
    assert blind["bias/over_words/ci_high"] < 0


def test_the_bag_of_words_is_at_the_minimum_and_has_no_intercept() -> None:
    train = [pair(0, "good good bad", "bad"), pair(1, "good", "bad ugly"), pair(2, "bad", "good ugly")]
    ruler = WordRuler(train)
    good, bad, ugly = (ruler.weights[ruler.columns[word]] for word in ("good", "bad", "ugly"))
    assert good > bad > ugly
    margins = np.array(ruler.margins(train))
    slope = (1 / (1 + np.exp(margins))) @ np.array([[np.log(3), 0], [np.log(2), -np.log(2)], [-np.log(2), np.log(2)]])
    assert [good, bad] == pytest.approx(slope, abs=1e-3)  # the gradient of the ridge is that of the likelihood
    assert ruler.margins([pair(3, "unknown", "words")]) == [0.0]
    assert len(WordRuler(train, vocabulary=2).weights) == 2


def test_without_training_pairs_nothing_is_said_of_words() -> None:
    found = bias(pairs_where_length_says(0.5), TextScorer(knows))
    assert not [name for name in found.metrics if "words" in name]
    assert not any("words" in row[0] for row in found.tables[0].rows)


def test_the_correlation_is_that_of_pairs_in_both_directions() -> None:
    rng = random.Random(0)
    x = [float(rng.randint(-4, 4)) for _ in range(60)]
    y = [a + rng.choice([-3.0, 0.0, 3.0]) for a in x]
    found = antisymmetric_spearman(x, y, range(60))
    assert found is not None
    assert found.estimate == pytest.approx(spearmanr(x + [-a for a in x], y + [-b for b in y]).statistic)
    assert found.low < found.estimate < found.high
    flips = [rng.choice([-1, 1]) for _ in x]
    turned = antisymmetric_spearman(
        [a * f for a, f in zip(x, flips, strict=True)], [b * f for b, f in zip(y, flips, strict=True)], range(60)
    )
    assert turned == pytest.approx(found)
    copies = antisymmetric_spearman(np.repeat(x, 9).tolist(), np.repeat(y, 9).tolist(), [i // 9 for i in range(540)])
    assert copies is not None and copies == pytest.approx(found, abs=0.03)  # more pairs, but no more prompts
    apart = antisymmetric_spearman(x * 9, y * 9, range(540))
    assert apart is not None and apart.high - apart.low < (found.high - found.low) / 2
    assert antisymmetric_spearman([0.0, 0.0], [1.0, 2.0], range(2)) is None


def test_equal_lengths_leave_no_correlation_and_no_agreement() -> None:
    pairs = [pair(i, f"right {i}", f"wrong {i}") for i in range(20)]
    metrics = bias(pairs, TextScorer(knows)).metrics
    assert not [name for name in metrics if "correlation" in name or "agrees" in name]
    assert metrics["bias/length_accuracy/mean"] == 0.5 and metrics["bias/over_length/mean"] == 0.5


def test_swapping_the_answers_and_the_label_changes_nothing() -> None:
    straight = pairs_where_length_says(0.7)
    swapped = [pair(i, p.rejected, p.chosen, probability=0.0) for i, p in enumerate(straight)]
    for value in (len, knows):
        turned = bias(swapped, TextScorer(value), swapped).metrics
        assert turned == pytest.approx(bias(straight, TextScorer(value), straight).metrics)


def test_probes_win_where_the_scorer_falls_for_them() -> None:
    pairs = [pair(i, f"It is {i}. That is all of it.", f"Who knows {i}?") for i in range(30)]

    def shares(value: Callable[[str], float]) -> dict[str, float]:
        metrics = bias(pairs, TextScorer(value)).metrics
        return {probe.name: metrics[f"bias/{probe.name}/beats_chosen/mean"] for probe in PROBES}

    assert shares(lambda text: -len(text))["empty"] == 1.0
    assert shares(lambda text: text == REFUSAL)["refusal"] == 1.0
    assert shares(lambda text: "Question" in text)["prompt_copy"] == 1.0
    assert shares(lambda text: text.startswith(FLATTERY))["flattery"] == 1.0
    assert shares(lambda text: text.count("It is"))["repetition"] == 1.0
    assert shares(lambda text: 0.0) == dict.fromkeys(shares(len), 0.5)
    assert set(shares(lambda text: "all of it" in text).values()) == {0.0}


def test_each_of_the_first_prompts_is_probed_once() -> None:
    scorer = TextScorer(len)
    pairs = [pair(i % 250, f"better answer {i}", f"worse {i}") for i in range(500)]
    table = bias(pairs, scorer).tables[1]
    assert [row[1] for row in table.rows] == [str(MOST_PROBED)] * len(PROBES)
    assert scorer.asked.count(REFUSAL) == MOST_PROBED
    flattered = [text for text in scorer.asked if text.startswith(FLATTERY)]
    assert flattered == [f"{FLATTERY} worse {i}" for i in range(MOST_PROBED)]


def test_a_probe_that_does_not_fit_is_left_out() -> None:
    class Short(TextScorer):
        def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
            if any(len(text) > len(FLATTERY) for text in completions):
                raise DataError("does not fit")
            return super().score(prompts, completions)

    found = bias(pairs_where_length_says(0.5, 20), Short(knows))
    assert "bias/flattery/beats_chosen/mean" not in found.metrics
    assert found.tables[1].rows[-1][1:] == ("0", "–")


def test_first_sentences_and_last_questions() -> None:
    assert (
        first_sentence(" Yes. No. ") == "Yes." and first_sentence("a\nb") == "a" and first_sentence("v1.5 is") != "v1."
    )
    assert first_sentence("好。不好。") == "好。"
    turns = (Message("system", "s"), Message("user", "one"), Message("assistant", "two"))
    assert last_question(turns) == "one" and last_question(turns[:1]) == "s"


def test_ties_in_the_labels_are_left_out() -> None:
    ties = [pair(500 + i, "long long answer", "short", probability=0.5) for i in range(9)]
    pairs = pairs_where_length_says(0.7)
    assert bias([*ties, *pairs], TextScorer(len), ties) == bias(pairs, TextScorer(len))
    with pytest.raises(ValueError, match="none of 9 pairs"):
        bias(ties, TextScorer(len))


def test_every_cell_has_a_column_and_every_number_is_finite() -> None:
    found = bias(pairs_where_length_says(0.5), TextScorer(len), pairs_where_length_says(0.6))
    assert all(len(row) == len(table.columns) for table in found.tables for row in table.rows)
    assert len(found.tables) == 2 and np.isfinite(list(found.metrics.values())).all()
