"""PPO with penalties: what is priced is avoided, what is free changes nothing, and prices move when they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from prefopt.errors import InputError
from prefopt.recipe.options.penalties import Penalties
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.penalties import Penalty
from prefopt.trainers.ppo import PPOTrainer
from tests.tiny import tiny_policy, tiny_tokenizer
from tests.unit.trainers.test_ppo import PROMPTS, Recorder, config, many_the, weights_hash

LETTER = {"cost": "banned", "patterns": ["a"]}


def priced(folder: Path, *options: dict[str, Any], recorder: Recorder | None = None, **more: Any) -> PPOTrainer:
    specs = TypeAdapter(Penalties).validate_python(list(options))
    return PPOTrainer(
        tiny_policy(),
        config(folder, **more),
        reward=many_the,
        penalties=[Penalty.of(spec, rule_cost(spec)) for spec in specs],
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
        callbacks=[recorder or Recorder()],
    )


@pytest.mark.parametrize("normalise", ["reference", "batch"])
def test_free_penalties_change_no_bit_of_what_is_trained(tmp_path: Path, normalise: str) -> None:
    free = ({**LETTER, "weight": 0.0}, {"cost": "length", "limit": 500, "target_rate": 0.1})
    plain, shaped = (
        priced(tmp_path / str(len(each)), *each, normalise=normalise, total_episodes=32) for each in ((), free)
    )
    plain.train()
    shaped.train()
    assert weights_hash(plain.model) == weights_hash(shaped.model)
    assert "penalties" not in plain._stateful and "penalties" in shaped._stateful


@pytest.mark.slow
def test_what_is_priced_is_learned_to_be_avoided(tmp_path: Path) -> None:
    """The reward pays for a letter, which without a penalty is everywhere, and with one is hardly to be found."""
    rates = {}
    for weight in (0.0, 8.0):
        recorder = Recorder()
        options = {"kl_coefficient": 0.01, "total_episodes": 16 * 24, "missing_eos_penalty": 0.0}
        letter = {"cost": "banned", "patterns": ["e"], "weight": weight}
        priced(tmp_path / str(weight), letter, recorder=recorder, **options).train()
        rows = [row for row in recorder.logs if "ppo/score" in row]
        rates[weight] = [row["penalty/banned/rate"] for row in rows]
        for row in rows:
            assert row["penalty/banned/term"] == pytest.approx(-weight * row["penalty/banned/cost"], abs=1e-5)
    start = rates[0.0][0]
    assert start == rates[8.0][0] > 0.1
    assert sum(rates[0.0][-6:]) / 6 > 2 * start and sum(rates[8.0][-6:]) / 6 < 0.6 * start, rates


def test_the_window_begins_with_the_reference_and_waits_for_the_value(tmp_path: Path) -> None:
    recorder = Recorder()
    learned = {**LETTER, "target_rate": 0.01}
    trained = priced(
        tmp_path, learned, recorder=recorder, value_warmup_rollouts=1, reference_samples=300, total_episodes=48
    )
    trained.train()
    weights = [row["penalty/banned/weight"] for row in recorder.logs if "penalty/banned/weight" in row]
    assert weights[0] == weights[1] == 0 < weights[2]  # the policy learns from the second rollout on
    assert trained.scale._count == 300
    assert len(trained.shaper.state_dict()["banned"]["window"]) == 256


def test_disagreement_without_an_ensemble_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the reward is none"):
        priced(tmp_path, {"cost": "ensemble_std", "weight": 1.0}).train()


@pytest.mark.parametrize("bound", ["sigmoid", "par"])
def test_bounded_rewards_are_bounded(tmp_path: Path, bound: str) -> None:
    trained = priced(tmp_path, reward_bound=bound, reward_slope=2.0, total_episodes=32, missing_eos_penalty=0.0)
    trained.train()
    rollout = trained.collect_rollout(7)
    assert float(rollout.shaped.total.min()) > 0 and float(rollout.shaped.total.max()) < 1
    assert rollout.shaped.total.argsort(stable=True).tolist() == rollout.scores.values.argsort(stable=True).tolist()
