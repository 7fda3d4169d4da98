"""grpo and rloo in half precision, in which sampling and training forwards compute otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_policy
from tests.unit.trainers.test_group import KINDS, trainer


@pytest.mark.parametrize("kind", KINDS)
def test_in_half_precision_the_kl_starts_at_0_though_sampling_computes_otherwise(kind: str, tmp_path: Path) -> None:
    model = tiny_policy()
    model.to(torch.bfloat16)
    once = {"num_iterations": 1, "num_mini_batches": 1, "total_episodes": 32}
    trained = trainer(kind, tmp_path, model, bf16=True, max_completion_length=24, **once)
    trained.train()
    assert trained.looks_again and trained.opening_gap == 0.0
    assert trained.state.log_history[0][f"{kind}/kl"] == 0.0
