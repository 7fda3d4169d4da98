"""Costs in the DPO trainer: margins, flagged tokens, and what they do to a policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt.trainers.dpo import DPOTrainer
from tests.tiny import random_rows, tiny_policy
from tests.unit.trainers.test_dpo import trainer, weights_hash


def priced(count: int = 8, seed: int = 0) -> list[dict]:
    """Pairs of which every second has a dear chosen answer and a flagged token."""
    found = []
    for number, row in enumerate(random_rows(count, seed)):
        size = len(row["chosen_ids"])
        flags = [1.5 if place == 1 else 0.0 for place in range(size)] if number % 2 else None
        costs = {"chosen_cost": float(number % 2), "rejected_cost": 0.25}
        found.append({**row, **costs, "chosen_unlikelihood": flags, "weight": 0.5 + number % 3})
    return found


def moved(directory: Path, rows: list[dict], **more) -> dict[str, torch.Tensor]:
    model = tiny_policy()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    fields = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 0.0, "save_strategy": "no"}
    trainer(directory, rows, model, **{**fields, "lr_scheduler_type": "constant", **more}).train()
    return {name: before[name] - p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_one_pass_of_eight_is_eight_of_one(tmp_path: Path) -> None:
    rows = priced()
    whole = moved(tmp_path / "a", rows, per_device_train_batch_size=8)
    parts = moved(tmp_path / "b", rows, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    size = max(float(value.abs().max()) for value in whole.values())
    assert size > 0 and max(float((whole[name] - parts[name]).abs().max()) for name in whole) < 1e-4 * size


def test_shared_and_padded_pairs_are_unlearned_alike(tmp_path: Path) -> None:
    rows = priced()
    one = trainer(tmp_path, rows)
    batch = one._prepare_inputs(one.data_collator(rows))
    with torch.no_grad():
        padded = one._completion_sums(one.model, batch).unlikelihood
        with one.fast_passes(rows):
            assert one.model.shares_prompts
            shared = one._completion_sums(one.model, batch).unlikelihood
    assert torch.allclose(padded, shared, rtol=1e-4) and (padded[8:] == 0).all()
    assert (padded[:8] > 0).tolist() == [bool(number % 2) for number in range(8)]


def test_columns_that_say_nothing_are_plain_training(tmp_path: Path) -> None:
    plain = random_rows(8)
    neutral = [{**row, "chosen_cost": 0.0, "rejected_cost": 0.0, "chosen_unlikelihood": None} for row in plain]
    hashes = []
    for name, rows in (("a", plain), ("b", neutral)):
        one = trainer(tmp_path / name, rows)
        one.train()
        hashes.append(weights_hash(one.model))
    assert hashes[0] == hashes[1]


def test_the_first_loss_is_its_equation(tmp_path: Path) -> None:
    """At the start h is 0, so the loss is log(1 + exp(c(l) - c(w))), and what is unlearned beside it."""
    rows = [{**row, "chosen_unlikelihood": None, "weight": 1.0} for row in priced(4)]
    one = trainer(tmp_path, rows, max_steps=1)
    one.train()
    (logged,) = [row for row in one.state.log_history if "dpo/cost_margin" in row]
    gaps = torch.tensor([0.25, -0.75, 0.25, -0.75])
    assert logged["loss"] == pytest.approx(float(torch.nn.functional.softplus(gaps).mean()), rel=1e-5)
    assert logged["dpo/cost_margin"] == pytest.approx(float(gaps.mean())) and logged["dpo/unlikelihood"] == 0


def flagged_probability(one: DPOTrainer, row: dict, place: int) -> float:
    ids = torch.tensor([[*row["prompt_ids"], *row["chosen_ids"]]])
    with torch.no_grad():
        said = one.model.peft(input_ids=ids).logits[0].softmax(-1)
    return float(said[len(row["prompt_ids"]) + place - 1, row["chosen_ids"][place]])


@pytest.mark.parametrize("weight", [3.0, 8.0])
def test_imitated_and_unlearned_a_token_settles_where_the_two_balance(tmp_path: Path, weight: float) -> None:
    """-log p - λ log(1 - p) is smallest at p = 1 / (1 + λ); the other tokens of the answer are learned as ever."""
    row = random_rows(1, seed=3)[0]
    flags = [0.0, weight] + [0.0] * (len(row["chosen_ids"]) - 2)
    rows = [{**row, "chosen_unlikelihood": flags}] * 4
    one = trainer(tmp_path, rows, loss_type=["sft"], max_steps=40, save_strategy="no")
    one.train()
    assert flagged_probability(one, row, 1) == pytest.approx(1 / (1 + weight), rel=0.1)
    assert flagged_probability(one, row, 0) > 1 / (1 + weight) + 0.1
