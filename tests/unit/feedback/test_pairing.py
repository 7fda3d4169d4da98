"""Which answers become pairs, and what their labels say."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.feedback.judges import label, sigmoid
from prefopt.feedback.pairing import Candidate, distinct, pairs_of

CANDIDATES = st.lists(
    st.builds(Candidate, st.sampled_from(["a", "b", "c", "d", "e", " ", "f\0"]), st.floats(-3, 3), st.just("sft"))
)


def of(*rewards: float) -> list[Candidate]:
    return [Candidate(f"answer {n}", reward, "sft") for n, reward in enumerate(rewards)]


def test_the_best_meets_the_worst_and_the_second_best_the_second_worst() -> None:
    pairs = pairs_of(of(0.0, 3.0, 1.0, 2.0, 0.5), "best_worst", 9, random.Random(0))
    assert [(better.reward, worse.reward) for better, worse in pairs] == [(3.0, 0.0), (2.0, 0.5)]
    assert len(pairs_of(of(0.0, 3.0, 1.0, 2.0), "best_worst", 1, random.Random(0))) == 1


@given(CANDIDATES, st.sampled_from(["best_worst", "random"]), st.integers(1, 4), st.integers(0, 9))
def test_pairs_are_disjoint_ordered_and_of_different_texts_and_rewards(candidates, pairing, count, seed) -> None:
    pairs = pairs_of(candidates, pairing, count, random.Random(seed))
    texts = [candidate.text for pair in pairs for candidate in pair]
    assert len(pairs) <= count and len(texts) == len(set(texts))
    assert all(better.reward > worse.reward for better, worse in pairs)
    assert all(text.strip() and "\0" not in text for text in texts)
    assert pairs == pairs_of(candidates, pairing, count, random.Random(seed))


def test_the_order_of_sampling_makes_no_difference_to_best_and_worst() -> None:
    candidates = of(0.1, 0.7, -2.0, 0.3)
    expected = pairs_of(candidates, "best_worst", 2, random.Random(0))
    assert pairs_of(candidates[::-1], "best_worst", 2, random.Random(5)) == expected


def test_random_pairs_are_random() -> None:
    found = Counter(pairs_of(of(1, 2, 3, 4), "random", 1, random.Random(seed))[0] for seed in range(600))
    assert len(found) == 6 and min(found.values()) > 60


def test_a_text_counts_once() -> None:
    assert distinct([Candidate("a", 1, "x"), Candidate("a", 2, "y"), Candidate("", 3, "x")]) == [Candidate("a", 1, "x")]


@pytest.mark.parametrize(("gap", "scale"), [(0.0, 1.0), (1.0, 1.0), (-2.0, 0.5), (0.7, 3.0)])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_sampled_labels_follow_bradley_and_terry_and_are_flipped_as_often_as_told(gap, scale, noise) -> None:
    rng = random.Random(1)
    share = sum(label(gap, "sampled", noise, scale, rng) for _ in range(20_000)) / 20_000
    expected = (1 - noise) * sigmoid(scale * gap) + noise * sigmoid(-scale * gap)
    assert share == pytest.approx(expected, abs=0.015)


def test_sign_and_soft_say_what_the_gap_says() -> None:
    rng = random.Random(0)
    assert [label(gap, "sign", 0.0, 1.0, rng) for gap in (2.0, 0.0, -1.0)] == [1.0, 0.5, 0.0]
    assert label(2.0, "soft", 0.0, 0.5, rng) == pytest.approx(sigmoid(1.0))
    flipped = [label(2.0, "sign", 0.3, 1.0, rng) for _ in range(5000)]
    assert flipped.count(0.0) / 5000 == pytest.approx(0.3, abs=0.03)


def test_the_options_do_not_change_how_many_numbers_are_drawn() -> None:
    after = []
    for labels in ("sampled", "sign", "soft"):
        rng = random.Random(3)
        label(0.4, labels, 0.2, 1.0, rng)
        after.append(rng.random())
    assert len(set(after)) == 1


def test_the_sigmoid_does_not_overflow() -> None:
    assert sigmoid(1e4) == 1.0 and sigmoid(-1e4) == 0.0 and sigmoid(0) == 0.5
