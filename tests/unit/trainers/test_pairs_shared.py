"""Training on pairs that share their prompt is training on padded pairs, and a cached reference is the reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from prefopt.models.pairs import PairLayout
from prefopt.store.reference_cache import ReferenceCache
from prefopt.trainers import pairs
from prefopt.trainers.dpo import DPOTrainer
from prefopt.trainers.pairs import PairTrainer, runs_of_tokens
from tests.tiny import random_rows, tiny_llama
from tests.unit.trainers.four import build, difference, trained


def losses(trainer: PairTrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def learned(method: str, directory: Path, padded: bool, **more: Any) -> PairTrainer:
    base = tiny_llama()
    if padded:
        base.set_attn_implementation("eager")
    fields = {"max_steps": 30, "learning_rate": 3e-3, "optim": "adamw_torch", "lr_scheduler_type": "constant", **more}
    trainer = build(method, directory, base=base, rows=random_rows(64), **fields)
    assert isinstance(trainer, PairTrainer)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("dpo", {}),
        ("dpo", {"loss_type": ["tdpo", "sft"], "ld_alpha": 0.5}),
        ("dpo", {"use_weighting": True}),
        ("reward", {}),
    ],
    ids=["dpo", "tdpo+sft", "weighted", "reward"],
)
def test_thirty_steps_have_the_losses_of_padded_pairs(tmp_path: Path, method: str, more: dict[str, Any]) -> None:
    fast = learned(method, tmp_path / "fast", False, **more)
    slow = learned(method, tmp_path / "slow", True, **more)
    assert fast.shared_gap is not None and fast.shared_gap < 1e-5 and slow.shared_gap is None
    assert losses(fast) == pytest.approx(losses(slow), rel=1e-4) and len(losses(fast)) == 30
    last = min(losses(fast)[-5:])
    assert last < losses(fast)[0] - 0.1 or last < 0.8 * losses(fast)[0]


def test_a_batch_of_more_tokens_than_a_pass_may_have_is_cut_and_the_step_stays(tmp_path: Path, monkeypatch) -> None:
    whole = learned("dpo", tmp_path / "whole", False, max_steps=4, optim="sgd", learning_rate=0.1)
    passes: list[int] = []

    def noted(module: object, inputs: tuple[torch.Tensor, torch.Tensor], output: object) -> None:
        if torch.is_grad_enabled():
            passes.append(int(inputs[1].sum()))

    monkeypatch.setattr(pairs, "TOKENS_PER_PASS", 60)
    trainer = build(
        "dpo", tmp_path / "cut", rows=random_rows(64), max_steps=4, optim="sgd", learning_rate=0.1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.model.register_forward_hook(noted)
    trainer.train()
    assert len(passes) > 8 and max(passes) <= 60
    assert difference(trained(trainer.model), trained(whole.model)) < 1e-5


def test_runs_of_tokens() -> None:
    assert runs_of_tokens([3, 3, 3, 9, 1, 1], 7) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert runs_of_tokens([], 7) == [] and runs_of_tokens([7, 1], 7) == [(0, 1), (1, 2)]


def test_a_model_that_cannot_share_is_padded_and_it_is_said_once(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        trainer = learned("reward", tmp_path, True, max_steps=2)
        trainer.evaluate(trainer.train_dataset)
    lines = [record.message for record in caplog.records if "padded rows" in record.message]
    assert len(lines) == 1 and "'eager'" in lines[0]


def test_what_differs_from_padded_rows_is_found_and_not_used(tmp_path: Path, caplog, monkeypatch) -> None:
    """A model whose attention sees more than it should: as if its masks were not what is thought."""
    monkeypatch.setattr(PairLayout, "_sees", lambda self, window: lambda query, key: query >= key)
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        trainer = learned("dpo", tmp_path / "wrong", False, max_steps=3)
    monkeypatch.undo()
    assert any("with and without padding it differs" in record.message for record in caplog.records)
    right = learned("dpo", tmp_path / "right", True, max_steps=3)
    assert losses(trainer) == pytest.approx(losses(right), rel=1e-5)


class Counted:
    def __init__(self) -> None:
        self.passes = 0

    def attach(self, trainer: DPOTrainer) -> None:
        """Count passes of the reference."""
        columns = trainer._reference_columns

        def counted(rows: Any) -> Any:
            self.passes += 1
            return columns(rows)

        trainer._reference_columns = counted


def test_a_second_run_asks_no_reference_and_ends_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pairs, "TOKENS_PER_PASS", 200)
    file = tmp_path / "reference.sqlite3"
    found = []
    for number in range(3):
        trainer = build("dpo", tmp_path / str(number), rows=random_rows(64), max_steps=3)
        assert isinstance(trainer, DPOTrainer)
        trainer._reference_cache = ReferenceCache(file) if number else None
        counted = Counted()
        counted.attach(trainer)
        trainer.train()
        found.append((counted.passes, trained(trainer.model)))
    (plain, expected), (cold, first), (warm, second) = found
    assert plain == cold > 3 and warm == 0
    assert all(torch.equal(expected[name], each[name]) for each in (first, second) for name in expected)


def test_a_pass_that_was_interrupted_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pairs, "TOKENS_PER_PASS", 200)

    cache, counted = ReferenceCache(tmp_path / "reference.sqlite3"), Counted()
    for limit in (3, 100):
        trainer = build("dpo", tmp_path / str(limit), rows=random_rows(64), max_steps=1)
        trainer._reference_cache = cache
        before = counted.passes
        counted.attach(trainer)

        class Interrupts(TrainerCallback):
            def on_prediction_step(self, *args: Any, limit: int = limit, before: int = before, **kwargs: Any) -> None:
                if counted.passes - before >= limit:
                    raise KeyboardInterrupt

        trainer.add_callback(Interrupts())
        if limit == 3:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train()
    alone = build("dpo", tmp_path / "alone", rows=random_rows(64), max_steps=1)
    whole = Counted()
    whole.attach(alone)
    alone.train()
    assert counted.passes == whole.passes  # none was made twice
    assert [row["reference_chosen_logps"] for row in trainer.train_dataset] == [
        row["reference_chosen_logps"] for row in alone.train_dataset
    ]
