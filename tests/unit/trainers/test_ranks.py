"""Two ranks train as one process does with the joined batch, and a kill of one of them loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import SequentialSampler

from prefopt.errors import InputError
from prefopt.store.checkpoints import checkpoints, read_checkpoint
from prefopt.trainers.order import TrainingOrder
from prefopt.trainers.ranks import FilledCollator, FilledOrder, FilledRows, any_rank, from_first, gathered, shared_out
from tests.unit.trainers.on_ranks import difference, launch, logged_difference, logs, weights
from tests.unit.trainers.ranks_script import ppo, run, sft

METHODS = (
    "sft",
    "reward",
    "dpo",
    "ppo",
    "shared_ppo",
    "full_ppo",
    "full_shared_ppo",
    "pretrain",
    "grpo",
    "rloo",
    "kto",
    "distill",
    "on_policy_distill",
    "own_sft",
    "own_dpo",
)


def test_one_process_is_the_only_rank() -> None:
    assert gathered("x") == ["x"] and from_first(lambda: 3) == 3
    assert any_rank(True) and not any_rank(False)
    assert shared_out(3, lambda numbers: [number * 10 for number in numbers]) == [0, 10, 20]


def test_every_row_comes_once_and_then_nothing_until_all_ranks_are_full() -> None:
    order = FilledOrder(TrainingOrder([5, 9, 1, 4, 7], 4, seed=3), 4)
    order.set_epoch(1)
    numbers = list(order)
    assert len(order) == len(numbers) == 8
    assert sorted(numbers[:5]) == [0, 1, 2, 3, 4] and numbers[5:] == [5, 6, 7]
    order.set_epoch(2)
    assert list(order) != numbers
    full = FilledOrder(SequentialSampler(range(8)), 4)
    assert list(full) == list(range(8))
    rows = FilledRows(["a", "b"], order, 4)
    rows.set_epoch(1)
    assert list(order) == numbers
    assert [rows[number] for number in range(4)] == ["a", "b", None, None] and len(rows) == 2
    collate = FilledCollator(list, lambda row: f"no {row}", rows.rows)
    assert collate(["b", None]) == ["b"] and collate([None, None]) == ["no a"]


def test_weights_that_are_cut_up_are_refused(tmp_path: Path) -> None:
    for build in (sft, ppo):
        trainer = build(tmp_path, [])
        trainer.is_fsdp_enabled = True
        with pytest.raises(InputError, match="cut up between ranks"):
            trainer.train()
    trainer = ppo(tmp_path, [])
    trainer.is_deepspeed_enabled = True
    with pytest.raises(InputError, match="DeepSpeed"):
        trainer.train()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where one process trained, and where two ranks did."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    done = launch(two, "shaped", *METHODS, "bypassed", "dropped", "estimated_kto")
    assert done.returncode == 0, done.stderr
    for method in ("shaped", *METHODS):
        run(one, method)
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one_process_with_the_joined_batch(folders: tuple[Path, Path], method: str) -> None:
    one, two = folders
    assert difference(weights(two, method, 0), weights(two, method, 1)) == 0
    assert difference(weights(two, method), weights(one, method)) < 1e-5
    assert logs(two, method, 0) == logs(two, method, 1)
    assert logged_difference(logs(two, method), logs(one, method)) < 1e-5
    # Only the first rank writes: every checkpoint is whole and has both random states.
    for checkpoint in checkpoints(two / method):
        names = {output.path for output in read_checkpoint(checkpoint).outputs}
        assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= names


@pytest.mark.slow
def test_ranks_estimate_one_distance_together(folders: tuple[Path, Path]) -> None:
    _, two = folders
    assert difference(weights(two, "estimated_kto", 0), weights(two, "estimated_kto", 1)) == 0
    assert logs(two, "estimated_kto", 0) == logs(two, "estimated_kto", 1)
    assert any(row.get("kto/kl", 0) > 0 for row in logs(two, "estimated_kto"))


@pytest.mark.slow
def test_a_shaper_that_ranks_call_with_their_own_completions_knows_all_of_them(folders: tuple[Path, Path]) -> None:
    one, two = folders
    (joined, first, second) = (logs(*where) for where in ((one, "shaped"), (two, "shaped", 0), (two, "shaped", 1)))
    assert first[2:] == second[2:] == joined[2:]  # prices and scale, to the bit
    for each in (0, 1):
        for name in ("penalty/length/rate", "penalty/banned/rate", "penalty/repetition/weight"):
            assert first[each]["metrics"][name] == second[each]["metrics"][name] == joined[each]["metrics"][name]
        assert [*first[each]["totals"], *second[each]["totals"]] == joined[each]["totals"]


@pytest.mark.slow
def test_a_forward_around_the_wrapper_is_found(folders: tuple[Path, Path]) -> None:
    one, two = folders
    assert difference(weights(two, "bypassed", 0), weights(two, "bypassed", 1)) > 1e-4
    assert difference(weights(two, "bypassed"), weights(one, "dpo")) > 1e-4


@pytest.mark.slow
def test_a_killed_rank_ends_the_other_and_the_run_goes_on_as_if_nothing_had_happened(
    folders: tuple[Path, Path],
) -> None:
    _, two = folders
    killed = launch(two, "killed")
    assert killed.returncode != 0
    assert [path.name for path in checkpoints(two / "resumed")][-1] == "checkpoint-4"
    resumed = launch(two, "resumed")
    assert resumed.returncode == 0, resumed.stderr
    for number in (0, 1):
        assert difference(weights(two, "resumed", number), weights(two, "dropped", number)) == 0
    after = [row for row in logs(two, "dropped") if row["step"] > 4 and "train_loss" not in row]
    assert logged_difference([row for row in logs(two, "resumed") if "train_loss" not in row], after) == 0


@pytest.mark.slow
def test_ranks_drop_different_units(folders: tuple[Path, Path]) -> None:
    """With dropout the joined batch is no model of two ranks, but each rank must have random numbers of its own."""
    _, two = folders
    states = [
        torch.load(two / "dropped" / "checkpoint-6" / f"rng_state_{number}.pth", weights_only=False)["cpu"]
        for number in (0, 1)
    ]
    assert not torch.equal(*states)
    assert difference(weights(two, "dropped"), weights(two, "sft")) > 1e-5
