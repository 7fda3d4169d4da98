"""Curves of reward over distance, and what texts look like."""

import math

import numpy as np
import pytest

from prefopt.evaluation.curves import Many, Moved, best_of_n, overoptimisation
from prefopt.evaluation.text import distinct, ngrams, repetition


def test_best_of_n_rises_and_a_useless_proxy_chooses_at_random() -> None:
    generator = np.random.default_rng(0)
    answers = {}
    for prompt in range(40):
        rewards = generator.normal(size=16).tolist()
        answers[prompt] = Many(rewards, generator.normal(size=16).tolist())
    found = best_of_n(answers, "gold")
    points = found.curves["best_of_n"]
    assert [point["n"] for point in points] == [1, 2, 4, 8, 16]
    own = [point["chosen_by_reward"]["estimate"] for point in points]
    blind = [point["chosen_by_proxy"]["estimate"] for point in points]
    assert own == sorted(own) and own[-1] > 1.4 and max(abs(value) for value in blind) < 0.35
    best = np.mean([max(many.rewards) for many in answers.values()])
    assert own[-1] == pytest.approx(best)
    believed = np.mean([max(many.proxies) for many in answers.values()])
    assert points[-1]["proxy"]["estimate"] == pytest.approx(believed) and "proxy" in points[0]
    assert found.metrics["best_of_n/chosen_by_reward/alpha"] > 0.5
    assert found.metrics["best_of_n/chosen_by_reward/r_squared"] > 0.95
    assert len(found.tables[0].columns) == 4


def test_without_a_proxy_there_is_no_column_for_it() -> None:
    found = best_of_n({0: Many([1.0, 2.0, 3.0, 4.0])}, "reward")
    assert len(found.tables[0].columns) == 3 and "chosen_by_proxy" not in found.curves["best_of_n"][0]


def test_a_policy_that_overshoots_has_a_law_with_a_peak() -> None:
    points = [Moved("sft", None, 0.0, 1.0, 0.0)]
    for step, d in enumerate((0.5, 1.0, 2.0, 3.0, 4.0)):
        points.append(Moved("ppo", step, d * d, 1.0 + d * (1.0 - 0.8 * math.log(d)), float(d)))
    found = overoptimisation(points, "sft", "gold")
    assert found.metrics["ppo:overoptimisation/alpha"] == pytest.approx(1.0, abs=1e-6)
    assert found.metrics["ppo:overoptimisation/beta"] == pytest.approx(0.8, abs=1e-6)
    law = found.curves["overoptimisation_law_ppo"]
    assert law["peak"] == pytest.approx(math.exp(1 / 0.8 - 1)) and law["peak"] < 4
    assert [point["distance"] for point in found.curves["overoptimisation"]][1:] == [0.5, 1.0, 2.0, 3.0, 4.0]


def test_two_points_are_no_law() -> None:
    found = overoptimisation([Moved("sft", None, 0.0, 1.0), Moved("dpo", None, 2.0, 1.5)], "sft", "gold")
    assert found.metrics == {} and len(found.tables[0].rows) == 2


def test_variety_and_repetition() -> None:
    assert ngrams("a b c", 2) == [("a", "b"), ("b", "c")] and ngrams("a", 2) == []
    assert distinct(["a b", "a b"], 1) == 0.5 and distinct(["a b", "c d"], 2) == 1.0 and distinct(["a"], 2) == 0.0
    assert repetition("a b c d e") == 0.0 and repetition("a") == 0.0
    assert repetition("a b c a b c a b c") == pytest.approx(1 - 3 / 7)
