"""Keeps a shaper, where it is a reward function of TRL's own trainers, in their checkpoints and out of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prefopt.errors import IntegrityError
from prefopt.rewards.shaper import Shaper
from prefopt.store.files import read_json, write_json

STATE_FILE = "shaper.json"


class KeepShaper(TrainerCallback):  # type: ignore[misc]
    """Saves prices and scale with every checkpoint, loads them where training goes on, and stops them in evaluations.

    `GRPOTrainer(reward_funcs=[shaper], callbacks=[KeepShaper(shaper)], …)`. prefopt's own trainers do this themselves.

    Args:
        shaper: The reward function.
    """

    def __init__(self, shaper: Shaper) -> None:
        self._shaper = shaper

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Prices move while the model trains, and at no other time."""
        self._shaper.training = lambda: bool(model.training)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint that the trainer goes on from.

        Raises:
            IntegrityError: When the shaper was not kept in it.
        """
        if state.global_step == 0:
            return
        path = _folder(args, state) / STATE_FILE
        if not path.is_file():
            raise IntegrityError(f"{path}: the shaper's prices were not kept in this checkpoint", "begin anew")
        kept = read_json(path)
        self._shaper.scale.load_state_dict(kept["scale"])
        self._shaper.load_state_dict(kept["penalties"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write prices and scale into the checkpoint that was just saved."""
        if state.is_world_process_zero:
            kept = {"scale": self._shaper.scale.state_dict(), "penalties": self._shaper.state_dict()}
            write_json(_folder(args, state) / STATE_FILE, kept)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    resumed = args.resume_from_checkpoint
    if isinstance(resumed, str) and Path(resumed).name == f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}":
        return Path(resumed)
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
