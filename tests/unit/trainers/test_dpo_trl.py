"""prefopt's DPOTrainer and TRL's, step by step on human pairs; tests/benchmarks/parity.py has all losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trl_parity import train_both

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": ["sigmoid"], "beta": 0.1},
        {"loss_type": ["ipo"], "beta": 0.1, "ld_alpha": 0.5},
        {"loss_type": ["apo_zero", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
    ],
    ids=lambda options: "+".join(options["loss_type"]),
)
def test_thirty_steps_have_the_losses_of_trl(
    shared_data: Path, shared_models: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    curves = train_both(shared_data, shared_models / "stories260k-hf", tmp_path, options, 1e-4)
    assert len(curves.ours) == 30 and curves.fall >= 0.1
    assert curves.gap < 1e-4


def test_without_the_end_of_sequence_the_losses_are_others(
    shared_data: Path, shared_models: Path, tmp_path: Path
) -> None:
    options = {"loss_type": ["sigmoid"], "beta": 0.1, "max_steps": 8}
    model = shared_models / "stories260k-hf"
    assert train_both(shared_data, model, tmp_path / "whole", options, 1e-4).gap < 1e-4
    assert train_both(shared_data, model, tmp_path / "cut", options, 1e-4, cut_eos=True).gap > 1e-3
