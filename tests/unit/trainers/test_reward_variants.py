"""What a reward model learns beside plain choices: margins, groups, less of length, ratings, two axes, many heads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from prefopt.errors import DataError, InputError
from prefopt.models.batches import PairCollator
from prefopt.models.heads import REWARD, RewardModel, hang_reward, new_reward_model
from prefopt.stats.agreement import mean_correlation
from prefopt.stats.calibration import both_orders, fit_temperature
from prefopt.trainers.reward import RewardTrainer
from prefopt.trainers.reward_rows import RewardRows, extra_tokens
from tests.tiny import random_rows, tiny_llama, tiny_tokenizer
from tests.unit.trainers.test_reward import config, weights_hash


def model(outputs: int = 1, seed: int = 1) -> RewardModel:
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    return new_reward_model(tiny_llama(), lora, None, outputs)


def trainer(directory: Path, rows, *, held_out=None, outputs: int = 1, **more) -> RewardTrainer:
    return RewardTrainer(
        model(outputs),
        config(directory, **{"save_strategy": "no", "per_device_train_batch_size": 8, **more}),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tiny_tokenizer(),
    )


def marked_pairs(count: int, seed: int, *, length: float = 0.0, mark: float = 20.0) -> list[dict[str, object]]:
    """Pairs of which one answer begins with a mark; labels follow the mark, or the length, as strongly as they say."""
    generator = np.random.default_rng(seed)
    rows = []
    for row in random_rows(count, seed):
        answers = [row["chosen_ids"], row["rejected_ids"]]
        first = int(generator.integers(2))
        answers[first] = [7, 7, *answers[first]]
        answers[1 - first] = [8, 8, *answers[1 - first]]
        logit = mark * (1 if first == 0 else -1) + length * math.tanh((len(answers[0]) - len(answers[1])) / 5)
        if generator.uniform() > 1 / (1 + math.exp(-logit)):
            answers.reverse()
        rows.append({"prompt_ids": row["prompt_ids"], "chosen_ids": answers[0], "rejected_ids": answers[1]})
    return rows


def by_mark(trained: RewardTrainer, rows) -> tuple[float, float]:
    """Accuracy of a model where the marked answer is better, and how its margins go with length."""
    chosen, rejected = trained.scores(rows)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    right = [(m > 0) == (row["chosen_ids"][0] == 7) for m, row in zip(margins, rows, strict=True)]
    return sum(right) / len(right), mean_correlation([margins, [float(extra_tokens(row)) for row in rows]])


def test_margins_reach_the_loss_only_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = marked_pairs(16, 0)
    told = [{**row, "margin": 3.0} for row in rows]
    plain, unused, none, asked = (
        trainer(tmp_path / name, data, margin_scale=scale, max_steps=4)
        for name, data, scale in (
            ("plain", rows, 0.0),
            ("unused", told, 0.0),
            ("none", [{**row, "margin": None} for row in rows], 1.0),
            ("asked", told, 1.0),
        )
    )
    for each in (plain, unused, none, asked):
        each.train()
    assert weights_hash(plain) == weights_hash(unused) == weights_hash(none) != weights_hash(asked)
    gaps = [np.subtract(*each.scores(rows)).mean() for each in (plain, asked)]
    assert gaps[1] > gaps[0]


def test_the_collator_hands_margins_on_and_takes_none_for_zero() -> None:
    rows = [{**row, "margin": margin} for row, margin in zip(random_rows(3), (1.5, None, -2.0), strict=True)]
    assert PairCollator()(rows)["margin"].tolist() == [1.5, 0.0, -2.0]
    assert "margin" not in PairCollator()(random_rows(2))


@pytest.mark.slow
def test_a_planted_preference_for_length_is_learned_less_and_quality_no_less(tmp_path: Path) -> None:
    rows, held_out = marked_pairs(400, 1, length=3.0, mark=1.5), marked_pairs(200, 2, length=0.0)
    found = {}
    for share in (0.0, 1.0):
        trained = trainer(tmp_path / str(share), rows, max_steps=100, learning_rate=3e-3, length_debias=share)
        trained.train()
        found[share] = by_mark(trained, held_out)
    assert found[0.0][1] > 0.35, found
    assert abs(found[1.0][1]) < 0.5 * found[0.0][1], found
    assert found[1.0][0] >= found[0.0][0] - 0.02, found


def test_groups_weigh_as_they_are_told(tmp_path: Path) -> None:
    rows = [
        {**row, "source": "rare" if n < 2 else "common", "weight": 2.0} for n, row in enumerate(marked_pairs(10, 3))
    ]
    weights = [row["weight"] for row in trainer(tmp_path, rows, group_weights="inverse").train_dataset]
    assert sum(weights) == pytest.approx(20) and sum(weights[:2]) == pytest.approx(sum(weights[2:]))
    assert [row["weight"] for row in trainer(tmp_path, rows).train_dataset] == [2.0] * 10
    more = {"group_weights": "effective_number", "group_by": "longer", "effective_number_beta": 0.0}
    assert [row["weight"] for row in trainer(tmp_path, rows, **more).train_dataset] == pytest.approx([2.0] * 10)
    longer = [extra_tokens(row) > 0 for row in rows]
    equal = [extra_tokens(row) == 0 for row in rows]
    weighted = trainer(tmp_path, rows, group_weights="inverse", group_by="longer").train_dataset
    sums = {n: sum(row["weight"] for row, a, b in zip(weighted, longer, equal, strict=True) if (a, b) == n) for n in
            set(zip(longer, equal, strict=True))}  # fmt: skip
    assert len(sums) >= 2 and len({round(value, 6) for value in sums.values()}) == 1


def test_ratings_are_learned_in_their_own_unit(tmp_path: Path) -> None:
    def rated(count: int, seed: int) -> list[dict[str, object]]:
        return [
            {**row, "score_chosen": 8.0 if row["chosen_ids"][0] == 7 else 3.0,
             "score_rejected": 8.0 if row["rejected_ids"][0] == 7 else 3.0}
            for row in marked_pairs(count, seed)
        ]  # fmt: skip

    trained = trainer(tmp_path, rated(96, 4), held_out=rated(24, 5), head="regression", max_steps=60)
    assert (trained.fitted.origin, trained.fitted.unit) == (5.5, 2.5)
    trained.train()
    scores = np.array(trained.scores(rated(24, 5))).T * trained.fitted.unit + trained.fitted.origin
    truth = np.array([[row["score_chosen"], row["score_rejected"]] for row in rated(24, 5)])
    assert 1 - ((scores - truth) ** 2).mean() / truth.var() > 0.7
    assert trained.evaluate()["eval_loss"] < 0.3
    with pytest.raises(DataError, match="no rating of both"):
        trainer(tmp_path, marked_pairs(4, 0), head="regression")


def test_two_axes_are_two_scores_each_with_its_own_label(tmp_path: Path) -> None:
    def labelled(count: int, seed: int) -> list[dict[str, object]]:
        # What is preferred is never safe; a third of the rows say nothing of safety.
        pairs = enumerate(marked_pairs(count, seed))
        return [{**row, "axes": {"safe": 0.0} if n % 3 else {}} for n, row in pairs]

    more = {"second_axis": "safe", "outputs": 2, "held_out": labelled(24, 7), "max_steps": 60}
    trained = trainer(tmp_path, labelled(96, 6), **more)
    trained.train()
    metrics = trained.evaluate()
    assert metrics["eval_reward/accuracy"] > 0.9 and metrics["eval_reward/second_accuracy"] > 0.9
    chosen, rejected = trained.outputs(labelled(24, 7))
    assert chosen.shape == (24, 1, 2)
    gaps = (chosen - rejected).mean(0)[0]
    assert gaps[0] > 1 and gaps[1] < -1
    with pytest.raises(DataError, match="no row has a label on the axis 'kind'"):
        trainer(tmp_path, labelled(6, 0), second_axis="kind", outputs=2)


def test_many_heads_differ_by_their_start_and_their_weights_and_score_as_their_mean(tmp_path: Path) -> None:
    trained = trainer(tmp_path, marked_pairs(48, 8), ensemble_heads=3, outputs=3, max_steps=12)
    weights = torch.tensor([row["member_weights"] for row in trained.train_dataset])
    assert weights.shape == (48, 3) and torch.allclose(weights.mean(0), torch.ones(3), atol=1e-5)
    trained.train()
    chosen, rejected = trained.outputs(marked_pairs(24, 9))
    assert chosen.shape == (24, 3, 1)
    margins = (chosen - rejected)[..., 0]
    correlation = mean_correlation(margins.T.tolist())
    assert 0 < correlation < 0.9999
    assert trained.scores(marked_pairs(24, 9))[0] == pytest.approx(chosen[..., 0].mean(1).tolist())


def test_equal_heads_score_as_one(tmp_path: Path) -> None:
    one, three = model(), model(3)
    three.load_state_dict({**one.state_dict(), "score.weight": one.score.weight.repeat(3, 1)})
    batch = PairCollator()(random_rows(4))
    with torch.no_grad():
        single, many = (each.eval()(batch["input_ids"], lengths=batch["lengths"]) for each in (one, three))
    assert many.shape == (8, 3) and torch.allclose(many, single.unsqueeze(1).expand(8, 3), atol=1e-6)


@pytest.mark.parametrize(("outputs", "more"), [(3, {"ensemble_heads": 3}), (2, {"second_axis": "safe"})])
def test_what_several_outputs_save_scores_as_they_do(tmp_path: Path, outputs: int, more) -> None:
    rows = [{**row, "axes": {"safe": 0.25}} for row in marked_pairs(16, 10)]
    trained = trainer(tmp_path, rows, outputs=outputs, max_steps=3, **more)
    trained.train()
    trained.save_weights(tmp_path / "saved")  # raises where the folder scores differently
    batch = PairCollator()(rows[:4])
    ids = (batch["input_ids"], None, batch["lengths"])
    with torch.no_grad():
        again = RewardModel(*hang_reward(tiny_llama(), tmp_path / "saved", REWARD)).eval()(*ids)
        assert torch.allclose(again, trained.model.eval()(*ids), atol=1e-5) and again.shape == (8, outputs)


def test_calibration_divides_the_scores_and_leaves_their_order(tmp_path: Path) -> None:
    held_out = marked_pairs(60, 12, mark=2.0)
    trained = trainer(tmp_path, marked_pairs(160, 11, mark=2.0), held_out=held_out, max_steps=60)
    trained.train()
    before = np.subtract(*trained.scores(held_out))
    temperature = trained.calibrate()
    assert 0.02 < temperature < 50  # the search ends at 0.01 and 100
    assert temperature == pytest.approx(fit_temperature(*both_orders(before.tolist(), [1.0] * 60)), rel=1e-3)
    after = np.subtract(*trained.scores(held_out))
    assert after * temperature == pytest.approx(before, rel=1e-4)
    assert trained.calibrate() == pytest.approx(1.0, abs=1e-3)
    trained.save_weights(tmp_path / "saved")
    with pytest.raises(ValueError, match="at least one value"):
        trained.calibrate([])


def test_options_that_cannot_be_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="head 'cost' is not known"):
        config(tmp_path, head="cost")
    with pytest.raises(InputError, match="ask for 2 outputs of the head, and it has 1"):
        trainer(tmp_path, marked_pairs(4, 0), ensemble_heads=2)


def test_what_is_fitted_on_training_rows_is_used_for_held_out_ones(tmp_path: Path) -> None:
    rows = marked_pairs(60, 13, length=4.0, mark=0.1)
    args = config(tmp_path, length_debias=0.5)
    fitted = RewardRows.fit(rows, args)
    assert fitted.length is not None and fitted.length.coefficient > 0.5
    (row,) = fitted.prepared(rows[:1], args, training=False)
    assert row["length_logit"] == pytest.approx(0.5 * fitted.length.logits([extra_tokens(rows[0])])[0])
    assert "weight" not in row and "length_logit" not in rows[0]
