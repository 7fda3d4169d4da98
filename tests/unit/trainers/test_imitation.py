"""Tokens that are unlearned, rows that weigh more and the focal loss, in TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt.trainers.trl import SFTConfig, SFTTrainer, language_modeling_rows
from tests.tiny import random_rows, tiny_policy, tiny_tokenizer
from tests.unit.trainers.test_trl import weights_hash


def rows(count: int, seed: int = 0) -> list[dict]:
    return [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in random_rows(count, seed)]


def flagged(given: list[dict], token: int, weight: float = 1.0) -> list[dict]:
    """Rows whose token of that number is flagged."""
    found = []
    for row in given:
        size, place = len(row["completion_ids"]), token % len(row["completion_ids"])
        imitation, unlearned = [1.0] * size, [0.0] * size
        imitation[place], unlearned[place] = 0.0, weight
        found.append({**row, "imitation": imitation, "unlikelihood": unlearned})
    return found


def trainer(directory: Path, data: list[dict], model=None, **more) -> SFTTrainer:
    fields = {
        "per_device_train_batch_size": len(data),
        "learning_rate": 5e-3,
        "max_steps": 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "max_length": None,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_nan_inf_filter": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "dataloader_pin_memory": False,
    }
    return SFTTrainer(
        model=model or tiny_policy(),
        args=SFTConfig(output_dir=str(directory), **{**fields, **more}),
        train_dataset=language_modeling_rows(data),
        eval_dataset=language_modeling_rows(data),
        processing_class=tiny_tokenizer(),
    )


def gradients(directory: Path, data: list[dict], **more) -> dict[str, torch.Tensor]:
    """Of the first step, through everything that a step goes through: what SGD without momentum moves."""
    model = tiny_policy()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer(directory, data, model, optim="sgd", learning_rate=1.0, **more).train()
    return {name: before[name] - p.detach() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], rtol: float = 1e-4) -> None:
    size = max(float(value.abs().max()) for value in one.values())
    assert size > 0 and max(float((one[name] - other[name]).abs().max()) for name in one) < rtol * size


def test_columns_that_say_nothing_are_plain_training_bit_for_bit(tmp_path: Path) -> None:
    plain = rows(8)
    neutral = [
        {**row, "imitation": [1.0] * len(row["completion_ids"]), "unlikelihood": [0.0] * len(row["completion_ids"])}
        for row in plain
    ]
    hashes = []
    for number, data in enumerate((plain, neutral)):
        one = trainer(tmp_path / str(number), data, max_steps=4, per_device_train_batch_size=4)
        one.train()
        hashes.append((weights_hash(one.model), one.evaluate()["eval_loss"]))
    assert hashes[0] == hashes[1]


def test_the_loss_is_its_equation(tmp_path: Path) -> None:
    data = [{**row, "weight": weight} for row, weight in zip(flagged(rows(3), 1, 0.5), (0.5, 2.0, 0.1), strict=True)]
    model = tiny_policy()
    total = weight = 0.0
    with torch.no_grad():
        for row in data:
            ids = torch.tensor([[*row["prompt_ids"], *row["completion_ids"]]])
            logps = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            own = logps[len(row["prompt_ids"]) - 1 :]
            kept, unlearned = (torch.tensor(row[name], dtype=torch.double) for name in ("imitation", "unlikelihood"))
            total += row["weight"] * float((-kept * own - unlearned * torch.log1p(-own.exp())).sum())
            weight += row["weight"] * len(own)
    one = trainer(tmp_path, data, model)
    assert one.evaluate()["eval_loss"] == pytest.approx(total / weight, rel=1e-5)
    one.train()
    logged = one.state.log_history[-2]
    assert logged["loss"] == pytest.approx(total / weight, rel=1e-4) and 0 < logged["sft/flagged_probability"] < 1


@pytest.mark.parametrize("weighted", [False, True])
def test_one_pass_of_eight_is_eight_of_one(tmp_path: Path, weighted: bool) -> None:
    data = flagged(rows(8), 2)
    if weighted:
        data = [{**row, "weight": 0.01 * (1 + number)} for number, row in enumerate(data)]
    whole = gradients(tmp_path / "a", data, focal_gamma=1.0)
    parts = gradients(
        tmp_path / "b", data, per_device_train_batch_size=1, gradient_accumulation_steps=8, focal_gamma=1.0
    )
    assert_same(whole, parts)


def test_a_weight_of_three_is_the_row_three_times(tmp_path: Path) -> None:
    data = rows(4)
    heavy = [{**row, "weight": 3.0 if number == 1 else 1.0} for number, row in enumerate(data)]
    assert_same(gradients(tmp_path / "a", heavy), gradients(tmp_path / "b", [*data, data[1], data[1]]))


def test_a_common_factor_of_weights_changes_nothing(tmp_path: Path) -> None:
    data = rows(4)
    light = [{**row, "weight": 1e-3} for row in data]
    assert_same(gradients(tmp_path / "a", data), gradients(tmp_path / "b", light))


def test_one_flag_lowers_only_its_own_probability(tmp_path: Path) -> None:
    """After imitation of everything, so that each has some to lose."""
    plain, model = rows(1, seed=3), tiny_policy()
    row = plain[0]
    ids = torch.tensor([[*row["prompt_ids"], *row["completion_ids"]]])

    def own() -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            said = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return said[len(row["prompt_ids"]) - 1 :]

    trainer(tmp_path / "a", plain, model, max_steps=20, learning_rate=1e-2).train()
    before = own()
    trainer(tmp_path / "b", flagged(plain, 1), model, max_steps=30, learning_rate=5e-3).train()
    change = own() - before
    others = torch.arange(len(change)) != 1
    assert change[1] < -2 and (change[others] > -0.02).all()


def test_unlikelihood_unlearns_and_keeps_the_rest(tmp_path: Path) -> None:
    """After imitation of everything; the same steps with the flag and without."""
    clean, bad = rows(6, seed=5), 77
    tainted = [
        {**row, "completion_ids": [*row["completion_ids"][:2], bad, *row["completion_ids"][2:]]} for row in clean
    ]
    marked = flagged(tainted, 2)

    def measured(model) -> tuple[float, float]:
        model.eval()
        of_bad, of_clean = [], []
        with torch.no_grad():
            for row in tainted:
                ids = torch.tensor([[*row["prompt_ids"], *row["completion_ids"]]])
                said = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                own = said[len(row["prompt_ids"]) - 1 :]
                of_bad.append(own[2].exp())
                of_clean.append(-torch.cat([own[:2], own[3:]]))
        return float(torch.stack(of_bad).mean()), float(torch.cat(of_clean).mean())

    model = tiny_policy()
    trainer(tmp_path / "imitated", tainted, model, max_steps=60, learning_rate=1e-2).train()
    before, nll_before = measured(model)
    trainer(tmp_path / "unlearned", marked, model, max_steps=40, learning_rate=5e-3).train()
    after, nll_after = measured(model)
    assert before > 0.3 and after < before / 10
    assert nll_after < 1.05 * nll_before
