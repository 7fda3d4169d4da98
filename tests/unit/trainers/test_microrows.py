"""Out of memory in a step: the pass is cut, and the step stays what it was. The faults are raised in real passes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prefopt.errors import EnvironmentFault, is_out_of_memory
from prefopt.models.actor_critic import ActorCritic
from prefopt.models.batches import PairCollator
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.microrows import without_padding
from tests.tiny import random_rows
from tests.unit.trainers.four import METHODS, build, difference, trained

ON_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
ROUNDING = 1e-5  # of other sums in float32; a pass that is left out or counted twice changes weights by 1e-2
Fault = Callable[[int], BaseException]


class SmallMemory:
    """Lets a model fail on more rows than fit, in the forward or in the backward pass of what is trained."""

    def __init__(
        self,
        model: nn.Module,
        fits: int,
        *,
        backward: bool = False,
        error: Fault | None = None,
        pair: int | None = None,
    ) -> None:
        self.fits = fits
        self.error = error or (lambda rows: torch.OutOfMemoryError(f"CUDA out of memory with {rows} rows"))
        self.failed: list[int] = []
        self._pair = pair
        self._episodes: int | None = None
        if isinstance(model, ActorCritic):  # takes padded rows, and computes them as one
            model.register_forward_pre_hook(self._see_episodes)
        layer = next(module for name, module in model.named_modules() if name.endswith("layers.1"))
        layer.register_forward_hook(self._in_backward if backward else self._in_forward)

    def _in_forward(self, module: nn.Module, given: object, states: Tensor) -> None:
        if torch.is_grad_enabled():
            self._fail(self._rows(states))

    def _in_backward(self, module: nn.Module, given: object, states: Tensor) -> None:
        if states.requires_grad:
            states.register_hook(lambda gradient: self._fail(self._rows(states)))

    def _rows(self, states: Tensor) -> int:
        """Rows of a pass; pairs stand one after another, all of the same length."""
        if self._episodes is not None:
            return self._episodes
        return len(states) if self._pair is None else states.shape[1] // self._pair

    def _see_episodes(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._episodes = len(given[0])

    def _fail(self, rows: int) -> None:
        if rows > self.fits:
            self.failed.append(rows)
            raise self.error(rows)


PAIR = 16  # tokens of every pair below, so that tokens tell how many pairs there are
EVEN = [
    {
        "prompt_ids": [1, *range(6, 11)],
        "chosen_ids": [*range(20 + i, 24 + i), 2],
        "rejected_ids": [*range(50 + i, 54 + i), 2],
    }
    for i in range(24)
]


def make(method: str, directory, **more) -> CheckpointedTrainer:
    return build(method, directory, rows=EVEN, **more)


def small_memory(method: str, trainer: CheckpointedTrainer, fits: int, **more) -> SmallMemory:
    return SmallMemory(trainer.model, fits, pair=PAIR if method in ("dpo", "reward") else None, **more)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_cut_equals_one_with_small_batches(tmp_path, caplog, method, backward):
    small = {"per_device_train_batch_size": 2} | ({} if method == "ppo" else {"gradient_accumulation_steps": 4})
    expected = make(method, tmp_path / "small", **small)
    start = trained(expected.model)
    expected.train()
    cut = make(method, tmp_path / "cut")
    memory = small_memory(method, cut, 2, backward=backward)
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        cut.train()
    assert memory.failed == [8, 4]  # once each, never again
    assert cut.micro_rows == 2
    assert len([record for record in caplog.records if "out of memory" in record.message]) == 1
    assert difference(trained(cut.model), trained(expected.model)) < ROUNDING
    assert difference(trained(cut.model), start) > 1e-3  # something was learned at all
    for mine, theirs in zip(cut.state.log_history, expected.state.log_history, strict=True):
        for name in set(mine) & {"loss", "grad_norm", "dpo/margin", "reward/accuracy", "ppo/ratio", "num_tokens"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("method", METHODS)
def test_earlier_passes_of_the_step_keep_their_gradients(tmp_path, method):
    """The second pass of an accumulated step fails in its backward, after it added to some gradients."""
    batches = {"per_device_train_batch_size": 4} | ({} if method == "ppo" else {"gradient_accumulation_steps": 2})
    expected, cut = (make(method, tmp_path / name, **batches) for name in ("whole", "cut"))
    expected.train()
    memory = small_memory(method, cut, 100, backward=True)
    passes = []
    cut.model.register_forward_pre_hook(lambda *_: passes.append(1) if torch.is_grad_enabled() else None)
    layer = next(module for name, module in cut.model.named_modules() if name.endswith("layers.0"))

    def second_pass(*_: object) -> None:
        memory.fits = 3 if len(passes) >= 2 else 100

    layer.register_forward_pre_hook(second_pass)
    cut.train()
    assert memory.failed == [4]
    assert difference(trained(cut.model), trained(expected.model)) < ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_without_a_fault_nothing_changes(tmp_path, method):
    first, second = (make(method, tmp_path / name) for name in ("a", "b"))
    first.train()
    second.in_micro_rows = lambda rows, one_pass: [one_pass(0, rows)]  # the mechanism left out
    second.train()
    assert all(torch.equal(value, trained(second.model)[name]) for name, value in trained(first.model).items())


@pytest.mark.parametrize("method", METHODS)
def test_when_a_single_row_does_not_fit_the_error_says_what_to_do(tmp_path, method):
    trainer = make(method, tmp_path)
    memory = small_memory(method, trainer, 0, error=lambda rows: RuntimeError(ON_CPU))
    with pytest.raises(EnvironmentFault, match=r"single row.*activation_checkpointing"):
        trainer.train()
    assert memory.failed == [8, 4, 2, 1]


@pytest.mark.parametrize("options", [{"loss_type": ["aot"]}, {"dr_beta": 1.0}], ids=lambda options: next(iter(options)))
def test_a_loss_that_compares_the_rows_of_a_batch_is_not_cut(tmp_path, options):
    """Its parts would not add up to it: the numbers would change without a word."""
    trainer = make("dpo", tmp_path, **options)
    memory = small_memory("dpo", trainer, 4)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert memory.failed == [8]


def test_other_errors_go_up_at_once(tmp_path):
    trainer = make("dpo", tmp_path)
    memory = small_memory(
        "dpo", trainer, 0, error=lambda rows: RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    )
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.train()
    assert len(memory.failed) == 1


def test_a_pass_that_failed_draws_no_random_numbers(tmp_path):
    trainer = make("dpo", tmp_path)
    drawn: list[float] = []

    def one_pass(start: int, end: int) -> None:
        drawn.append(float(torch.rand(())))
        if end - start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    torch.manual_seed(0)
    trainer.in_micro_rows(4, one_pass)
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_reference_is_computed_in_parts_as_well(tmp_path):
    whole, cut = make("dpo", tmp_path / "a"), make("dpo", tmp_path / "b")
    layer = next(module for name, module in cut.model.named_modules() if name.endswith("layers.1"))

    def fail(module: nn.Module, given: object, states: Tensor) -> None:
        if len(states) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")

    layer.register_forward_hook(fail)
    for mine, theirs in zip(*(t._with_reference(t.train_dataset) for t in (cut, whole)), strict=True):
        assert mine["reference_chosen_logps"] == pytest.approx(theirs["reference_chosen_logps"], rel=1e-5)
    assert cut.micro_rows in (2, 3)


def test_both_sides_of_a_pair_stay_together(tmp_path):
    rows = [{**row, "weight": float(number)} for number, row in enumerate(random_rows(5))]
    trainer = make("dpo", tmp_path)
    whole = PairCollator()(rows)
    part = without_padding(trainer.take_rows(whole, 2, 4))
    expected = PairCollator()(rows[2:4])
    assert part.keys() == expected.keys()
    assert all(torch.equal(part[name], expected[name]) for name in expected)


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(RuntimeError(ON_CPU))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))
