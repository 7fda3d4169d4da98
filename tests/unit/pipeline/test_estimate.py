"""The formula of a stage's memory, the batches that fit by it, and sizes as people write them."""

from __future__ import annotations

import json

import pytest

from prefopt.cli.check import parse_size
from prefopt.errors import EnvironmentFault, InputError
from prefopt.pipeline.deep_check import candidates, rows_per_step
from prefopt.pipeline.estimate import Estimate, Phase, size_text
from prefopt.recipe.schema import DPOSpec, PPOSpec

ESTIMATE = Estimate(
    before_model=100,
    weights=50,
    trained=5,
    optimizer=10,
    passes=2,
    phases=(Phase("update", 8, 20, 10), Phase("evaluation", 16, 2, 4, tile_per_row=3, tile=30)),
)


def memory(limit: int | None) -> dict[str, object]:
    return {**ESTIMATE.to_json(), "limit": limit, "estimate": ESTIMATE.peak}


def dpo(**more) -> DPOSpec:
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "per_device_eval_batch_size": 16}
    return DPOSpec(kind="dpo", data=("pairs",), **{**sizes, **more})


def test_the_peak_is_that_of_the_largest_phase():
    assert ESTIMATE.peak == 100 + 50 + 10 + (20 + 80) + 5
    assert ESTIMATE.with_rows(8, 16, 1).peak == 260
    assert ESTIMATE.with_rows(1, 16, 24).peak == 160 + 2 + 64 + 30  # the tile is full
    assert ESTIMATE.with_rows(1, 4, 24).peak == 160 + 35  # now the step, with the gradients of its earlier passes
    assert ESTIMATE.with_rows(1, 99, 24) == ESTIMATE.with_rows(1, 16, 24)  # no more rows than there are


def test_an_estimate_survives_json():
    assert Estimate.from_json(json.loads(json.dumps(memory(7)))) == ESTIMATE


def test_batches_that_fit_keep_the_rows_of_a_step():
    found = list(candidates(dpo(), memory(300)))
    sizes = [(each["per_device_train_batch_size"], each["gradient_accumulation_steps"]) for each in found]
    # 0.9 * 300 = 270: 8 rows need 265, 12 need 305; 24 = rows x passes throughout.
    assert sizes == [(8, 3), (6, 4), (4, 6), (3, 8), (2, 12), (1, 24)]
    assert {each["per_device_eval_batch_size"] for each in found} == {16}


def test_evaluation_is_made_smaller_where_it_is_what_does_not_fit():
    spec = dpo(per_device_train_batch_size=1, gradient_accumulation_steps=1)
    (settings,) = candidates(spec, memory(250))
    # 160 + 2 + 4 x 9 + 3 x 9 = 225 = 0.9 x 250
    assert settings == {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 9,
        "gradient_accumulation_steps": 1,
    }


def test_nothing_fits_where_the_weights_do_not():
    assert list(candidates(dpo(), memory(160))) == []
    with pytest.raises(EnvironmentFault, match="--memory"):
        list(candidates(dpo(), memory(None)))


def test_passes_of_ppo_divide_its_minibatch():
    spec = PPOSpec(
        kind="ppo", prompts=("p",), reward={"model": "gold"}, rollout_batch_size=24, num_mini_batches=2,
        per_device_train_batch_size=4, per_device_eval_batch_size=16,
    )  # fmt: skip
    assert rows_per_step(spec) == 12
    found = list(candidates(spec, memory(10**6)))
    assert [each["per_device_train_batch_size"] for each in found] == [12, 6, 4, 3, 2, 1]
    assert "gradient_accumulation_steps" not in found[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("8 GB", 8 * 10**9), ("500MiB", 500 * 2**20), ("1.5gib", 3 * 2**29), ("8e9", 8 * 10**9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "8 TiB", "1.2.3GiB", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="--memory"):
        parse_size(text)


def test_sizes_are_written_in_the_unit_that_fits():
    assert [size_text(size) for size in (1536, 5 * 2**20, 3 * 2**29)] == ["2 KiB", "5 MiB", "1.50 GiB"]
