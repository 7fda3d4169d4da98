"""The low estimate of what a run will write."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.pipeline.preflight import needed_bytes
from prefopt.recipe.schema import CollectSpec, ModelSpec, PPOSpec, RewardSpec
from prefopt.recipe.scorers import JudgeSpec, PPORewardSpec

GOLD = JudgeSpec(model="gold")


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    """A base of ten megabytes."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(10_000_000)
    return ModelSpec(model_name_or_path=str(tmp_path))


def test_what_trains_needs_more_than_what_samples(model: ModelSpec) -> None:
    collect = needed_bytes([CollectSpec(kind="collect", policies=("a",), prompts=("b",), judge=GOLD)], model)
    reward = needed_bytes([RewardSpec(kind="reward", data=("b",))], model)
    assert reward > collect > 0


def test_a_second_adapter_and_more_checkpoints_need_more(model: ModelSpec) -> None:
    spec = PPOSpec(kind="ppo", prompts=("b",), reward=PPORewardSpec(model="gold"), value="shared")
    adapter = spec.model_copy(update={"value": "adapter"})
    kept = spec.model_copy(update={"save_total_limit": 5})
    shared = needed_bytes([spec], model)
    nothing = needed_bytes([CollectSpec(kind="collect", policies=("a",), prompts=("b",), judge=GOLD)], model)
    assert needed_bytes([adapter], model) - nothing == 2 * (shared - nothing) > 0
    assert needed_bytes([kept], model) - nothing == 2 * (shared - nothing)
