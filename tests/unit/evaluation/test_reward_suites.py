"""Accuracy and calibration of reward models, and the gate that a ruler of length does not pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from prefopt.data.toy import world
from prefopt.errors import GateRefused
from prefopt.evaluation import gates
from prefopt.evaluation.bias import bias
from prefopt.evaluation.calibration import calibration
from prefopt.evaluation.findings import ScoredPair, score_pairs
from prefopt.evaluation.reward_accuracy import reward_accuracy
from prefopt.recipe.load import load
from prefopt.records import Message, PreferencePair, Prompt, Score
from prefopt.rewards.scorers import GoldScorer

QUICKSTART = Path(__file__).parents[3] / "recipes" / "quickstart.yaml"


def pair(number: int, probability: float = 1.0, **more: str) -> PreferencePair:
    return PreferencePair((Message("user", f"question {number}"),), "yes, please", "no", probability, **more)


def scored(margins: Sequence[float], probability: float = 1.0) -> list[ScoredPair]:
    return [ScoredPair(pair(n, probability), margin, 0.0) for n, margin in enumerate(margins)]


class Ruler:
    """A reward model that has learnt nothing but length."""

    name = "ruler"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        return [Score(float(len(text))) for text in completions]


def test_accuracy_counts_hits_ties_as_half_and_leaves_undecided_labels_out() -> None:
    pairs = [*scored([1.0, 2.0, -1.0, 0.0]), ScoredPair(pair(9, 0.5), 5.0, 0.0)]
    found = reward_accuracy(pairs).metrics
    assert found["reward/accuracy/mean"] == 2.5 / 4 and found["reward/pairs"] == 4
    assert found["reward/margin/mean"] == pytest.approx(0.5)
    # A label below one half prefers the second answer.
    turned = reward_accuracy(scored([-1.0, -2.0, 1.0, 0.0], probability=0.2)).metrics
    assert turned["reward/accuracy/mean"] == 2.5 / 4
    with pytest.raises(ValueError, match="no label"):
        reward_accuracy([ScoredPair(pair(0, 0.5), 1.0, 0.0)])


def test_groups_show_where_it_fails() -> None:
    good = [ScoredPair(pair(n, source="books"), 2.0 + n, 0.0) for n in range(20)]
    bad = [ScoredPair(pair(n + 20, source="chats"), -0.1 - n / 1e3, 0.0) for n in range(20)]
    (table,) = reward_accuracy([*good, *bad]).tables
    rows = {(row[0], row[1]): row[3] for row in table.rows}
    assert rows["source", "books"].startswith("100.0%") and rows["source", "chats"].startswith("0.0%")
    assert rows["margin of the scores", "4 largest quarter"].startswith("100.0%")
    assert ("annotator", "") not in rows


def test_a_model_that_is_too_sure_is_mended_by_its_temperature() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(0, 1.5, size=3000)
    chosen_first = generator.uniform(size=3000) < 1 / (1 + np.exp(-true))
    pairs = [
        ScoredPair(pair(n, 1.0 if first else 0.0), 4 * float(margin), 0.0)
        for n, (margin, first) in enumerate(zip(true, chosen_first, strict=True))
    ]
    found = calibration(pairs).metrics
    assert found["calibration/temperature"] == pytest.approx(4.0, rel=0.1)
    assert found["calibration/ece_before"] > 0.1 > 5 * found["calibration/ece_after"]
    assert found["calibration/nll_after"] < found["calibration/nll_before"]
    assert found["calibration/brier_after"] < found["calibration/brier_before"] < 0.25
    # As good as chance alone would look: no temperature does better.
    assert found["calibration/ece_after"] < 2 * found["calibration/ece_chance_after"]


def test_a_temperature_is_judged_on_prompts_that_did_not_choose_it() -> None:
    # Four pairs that one half gets right and the other wrong: fitted on itself, each half would be certain of itself.
    pairs = [ScoredPair(pair(n // 2), 1.0, 0.0) for n in range(8)]
    found = calibration(pairs).metrics
    assert found["calibration/nll_after"] < 0.1  # all are right: the other half says so too
    with pytest.raises(ValueError, match="two prompts"):
        calibration([ScoredPair(pair(0), 1.0, 0.0)])


def test_a_reward_model_that_only_measures_length_does_not_pass_the_gate_of_the_quickstart(tmp_path: Path) -> None:
    held_out, train = list(world.preferences(300, 1)), list(world.preferences(600, 2))
    gate = load(QUICKSTART).recipe.stages["checks"].require
    assert gate
    with pytest.raises(GateRefused, match="bias/over_length is 0 "):
        gates.require("checks", gate, bias(held_out, Ruler(), train).metrics, tmp_path)
    gates.require("checks", gate, bias(held_out, GoldScorer(), train).metrics, tmp_path)
    # Its accuracy alone would not have given it away.
    accuracy = reward_accuracy(score_pairs(held_out, Ruler())).metrics["reward/accuracy/ci_low"]
    assert accuracy > 0.5
