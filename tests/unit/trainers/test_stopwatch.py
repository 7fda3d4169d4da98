"""A rollout's time is told apart: what sampling took, what the reward took, and what is left."""

import time
from pathlib import Path

import pytest

from prefopt.trainers.stopwatch import Stopwatch
from tests.unit.trainers.test_ppo import many_the, trainer


def test_seconds_add_up_until_they_are_taken() -> None:
    watch = Stopwatch("sleep", "rest")
    for _ in range(2):
        with watch.timing("sleep"):
            time.sleep(0.01)
    with pytest.raises(KeyError), watch.timing("rest"):
        raise KeyError
    taken = watch.take()
    assert taken["sleep"] >= 0.02 and taken["rest"] > 0
    assert watch.take() == {"sleep": 0.0, "rest": 0.0}


def test_sampling_and_scoring_are_parts_of_a_rollout(tmp_path: Path) -> None:
    def slow(prompts, completions) -> list[float]:
        time.sleep(0.05)
        return many_the(prompts, completions)

    trained = trainer(tmp_path, reward=slow, score_prefixes=2)
    trained.train()
    rows = [row for row in trained.state.log_history if "ppo/rollout_seconds" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["ppo/scoring_seconds"] >= 0.1 and row["ppo/sampling_seconds"] > 0  # the texts, and their beginnings
        assert row["ppo/scoring_seconds"] + row["ppo/sampling_seconds"] <= row["ppo/rollout_seconds"]
