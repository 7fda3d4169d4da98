"""What fits rollouts into the loop of `transformers.Trainer`: how they are cut, and where training may stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset
from transformers import TrainerCallback

from prefopt.errors import InputError


def cut_rollout(rollout: int, samples_per_prompt: int, mini_batches: int, *, rows: int, ranks: int) -> tuple[int, int]:
    """How a rollout is cut into equal passes.

    Args:
        rollout: Its episodes, over all ranks.
        samples_per_prompt: Episodes that answer the same prompt.
        mini_batches: Optimiser steps that use each episode once.
        rows: Episodes of a pass on a rank, at most.
        ranks: How many there are.

    Returns:
        Episodes of a pass on a rank, and passes of an optimiser step.

    Raises:
        InputError: When sizes do not divide each other.
    """
    if rollout % samples_per_prompt:
        raise InputError(
            f"a rollout of {rollout} episodes has no whole prompts of {samples_per_prompt}",
            "choose a rollout_batch_size that samples_per_prompt divides",
        )
    share = rollout // ranks
    mini_batch, rest = divmod(share, mini_batches)
    rows_of_pass = min(rows, max(mini_batch, 1))
    if rest or share * ranks != rollout or mini_batch % rows_of_pass:
        raise InputError(
            f"a rollout of {rollout} episodes on {ranks} ranks cannot be cut into "
            f"{mini_batches} minibatches of passes of {rows_of_pass}",
            "choose sizes that divide each other",
        )
    return rows_of_pass, mini_batch // rows_of_pass


class Slots(Dataset[int]):
    """As many rows as the loop needs to take its steps; they hold nothing."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:
        return index


class BetweenRollouts(TrainerCallback):  # type: ignore[misc]
    """Puts off saving and stopping until a rollout is used up.

    Args:
        steps_per_rollout: Optimiser steps of a rollout.
        ended: Asked after every rollout whether training should end.

    Attributes:
        asked_to_stop: Whether training ends because it was asked to, and will go on later.
    """

    def __init__(self, steps_per_rollout: int, ended: Callable[[], bool]) -> None:
        self._steps = steps_per_rollout
        self._ended = ended
        self._save = self._stop = False
        self.asked_to_stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs after every other callback, as it was added last."""
        self._save |= control.should_save
        self._stop |= control.should_training_stop
        if state.global_step % self._steps:
            control.should_save = control.should_training_stop = False
            return
        if self._ended():
            self._save = self._stop = True
        elif self._stop and state.global_step < state.max_steps:
            self.asked_to_stop = True
        control.should_save, control.should_training_stop = self._save, self._stop
        self._save = self._stop = False
