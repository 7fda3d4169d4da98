"""Trainers on rows that lie on disk do what they do on lists of the same rows, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.data.pieces import id_bytes
from prefopt.data.token_rows import Columns, RowWriter, TokenRows
from prefopt.pipeline.cost import completion_share
from prefopt.trainers.pairs import pair_lengths
from prefopt.trainers.reward_rows import RewardRows
from tests.tiny import random_rows
from tests.unit.trainers import test_dpo as dpo
from tests.unit.trainers import test_reward_variants as reward

COLUMNS = Columns(
    ("prompt_ids", "chosen_ids", "rejected_ids"),
    ("weight", "probability", "margin", "score_chosen", "score_rejected"),
    ("source", "annotator"),
    ("axes",),
)


def labelled(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs as the reward stage has them: weights, soft labels, ratings, sources, axes; some say less."""
    generator = np.random.default_rng(seed)
    return [
        {
            **row,
            "weight": float(generator.uniform(0.5, 2)),
            "probability": float(generator.choice([0.6, 0.9, 1.0])),
            "margin": None if number % 3 else float(generator.normal()),
            "score_chosen": float(generator.normal()),
            "score_rejected": float(generator.normal()),
            "source": f"set {number % 2}",
            "annotator": "",
            "axes": {"safe": float(generator.uniform())} if number % 4 else {},
        }
        for number, row in enumerate(random_rows(count, seed))
    ]


def on_disk(folder: Path, rows: list[dict[str, Any]]) -> TokenRows:
    folder.mkdir(parents=True)
    writer = RowWriter(folder, COLUMNS)
    for row in rows:
        numbers = [row[name] for name in COLUMNS.numbers]
        texts = [*(row[name] for name in COLUMNS.texts), json.dumps(row["axes"])]
        writer.add([id_bytes(row[name]) for name in COLUMNS.ids], numbers, texts)
    writer.close()
    return TokenRows(folder)


@pytest.mark.parametrize("order", ["random", "group_by_length"])
@pytest.mark.parametrize("workers", [0, 2])
def test_dpo(tmp_path: Path, order: str, workers: int) -> None:
    rows, held_out = labelled(24, 0), labelled(8, 9)
    hashes, logs = [], []
    for name, train, evaluation in (
        ("list", rows, held_out),
        ("disk", on_disk(tmp_path / "train", rows), on_disk(tmp_path / "eval", held_out)),
    ):
        trainer = dpo.trainer(
            tmp_path / name, train, held_out=evaluation, train_sampling_strategy=order, dataloader_num_workers=workers
        )
        trainer.train()
        hashes.append(dpo.weights_hash(trainer.model))
        logs.append([entry.get("loss") for entry in trainer.state.log_history] + [trainer.evaluate()["eval_loss"]])
    assert hashes[0] == hashes[1] and logs[0] == logs[1]


def test_dpo_resumes_on_the_same_rows(tmp_path: Path) -> None:
    rows = labelled(24, 0)
    whole = dpo.trainer(tmp_path / "whole", rows)
    whole.train()
    stored = on_disk(tmp_path / "rows", rows)
    dpo.trainer(tmp_path / "cut", stored, callbacks=[dpo.StopAt(3)]).train()
    resumed = dpo.trainer(tmp_path / "cut", stored)
    resumed.train(resume_from_checkpoint=True)
    assert dpo.weights_hash(resumed.model) == dpo.weights_hash(whole.model)


@pytest.mark.parametrize(
    "options",
    [
        {"margin_scale": 0.5},
        {"group_weights": "inverse", "group_by": "source"},
        {"group_weights": "effective_number", "group_by": "longer", "length_debias": 0.5},
        {"head": "regression"},
        {"second_axis": "safe", "outputs": 2},
        {"ensemble_heads": 3, "outputs": 3},
    ],
    ids=lambda options: "-".join(options),
)
def test_reward(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = labelled(24, 3)
    scores = []
    for name, train in (("list", rows), ("disk", on_disk(tmp_path / "rows", rows))):
        trained = reward.trainer(tmp_path / name, train, held_out=train[:6], max_steps=3, **options)
        trained.train()
        scores.append(trained.outputs(train))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*scores, strict=True))


def test_lengths_are_not_counted_by_reading(tmp_path: Path) -> None:
    rows = labelled(20, 1)
    stored = on_disk(tmp_path / "rows", rows)
    assert pair_lengths(stored) == pair_lengths(rows)
    assert completion_share(stored) == completion_share(rows)
    args = reward.config(tmp_path, length_debias=0.5)
    assert RewardRows.fit(stored, args) == RewardRows.fit(rows, args)
