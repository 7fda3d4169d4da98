"""Every trainer, made in one way: tiny, with two saves, the older one rotated away after the newer one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from prefopt.trainers.checkpoints import CheckpointedTrainer
from tests.unit.trainers import test_distill, test_group, test_kto
from tests.unit.trainers.four import METHODS, build

KINDS = (*METHODS, "kto", "grpo", "rloo", "distill")
SAVED = {kind: (1, 2) for kind in KINDS} | {kind: (2, 4) for kind in ("ppo", "grpo", "rloo")}
"""Steps that a run saves at; those of rollouts save after each of their two rollouts."""

_SAVING = {"save_strategy": "steps", "save_total_limit": 1, "save_steps": 1, "logging_steps": 1}
_ROLLOUTS = {"total_episodes": 32, "rollout_batch_size": 16, "num_mini_batches": 2}
_SHORT = {"total_episodes": 8, "rollout_batch_size": 4, "max_new_tokens": 3, "num_ppo_epochs": 1}


def made(kind: str, folder: Path, **more: Any) -> CheckpointedTrainer:
    """A trainer that writes its checkpoints to `folder`."""
    options: dict[str, Any] = {**_SAVING, **more}
    if kind in METHODS:
        own = {**_ROLLOUTS, **_SHORT} if kind == "ppo" else {"max_steps": 2}
        return build(kind, folder, **{**own, "optim": "adamw_torch", "learning_rate": 5e-3, **options})
    if kind == "kto":
        small = {"max_steps": 2, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
        return test_kto.trainer(folder, **{**small, "data": test_kto.rows(6), **options})
    if kind == "distill":
        return test_distill.trainer(folder, **{"max_steps": 2, **options})
    return test_group.trainer(kind, folder, **{**_ROLLOUTS, "num_iterations": 1, **options})


def train(kind: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint that verifies, and saves the adapter.

    Returns:
        The step that training went on from, and the sha256 of everything that is trained.
    """
    trainer = made(kind, folder / "checkpoints", **more)
    checkpoint = trainer.checkpoint_of(True)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder / "adapter"))
    step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    return {"from": step, "sha256": weights(folder / "adapter"), "step": trainer.state.global_step}


def weights(folder: Path) -> str:
    """The sha256 over every file of weights in a folder."""
    digest = hashlib.sha256()
    files = sorted(folder.rglob("*.safetensors"))
    assert files, f"no weights in {folder}"
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
