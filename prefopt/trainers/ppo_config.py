"""Options of PPO, and what fits its rollouts into the loop of `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from prefopt.errors import InputError


@dataclass
class PPOConfig(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` and PPO's own, in the names of TRL's last PPO; batch sizes count episodes."""

    total_episodes: int = field(default=10_000, metadata={"help": "completions sampled in all"})
    rollout_batch_size: int = field(default=128, metadata={"help": "episodes between updates, over all ranks"})
    num_ppo_epochs: int = field(default=4, metadata={"help": "how often each episode is used"})
    num_mini_batches: int = field(default=1, metadata={"help": "optimiser steps of an epoch"})
    max_new_tokens: int = field(default=64, metadata={"help": "completions are cut there"})
    min_new_tokens: int = field(default=0, metadata={"help": "no completion ends before; to measure the longest"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    temperature: float = field(default=1.0, metadata={"help": "divides the logits wherever they are used"})
    kl_coefficient: float = field(default=0.05, metadata={"help": "price of a nat of KL, in units of the reward"})
    kl_stop_above: float | None = field(default=None, metadata={"help": "nats per completion at which training ends"})
    normalise: str = field(default="reference", metadata={"help": "'reference' or 'none'"})
    reward_clip: float | None = field(default=None, metadata={"help": "normalised rewards are cut to [-x, x]"})
    missing_eos_penalty: float = field(default=1.0, metadata={"help": "subtracted where a completion does not end"})
    whiten_rewards: bool = field(default=False, metadata={"help": "divide token rewards by their deviation"})
    gamma: float = field(default=1.0, metadata={"help": "discount per token"})
    lam: float = field(default=0.95, metadata={"help": "lambda of the advantage estimate"})
    cliprange: float = field(default=0.2, metadata={"help": "epsilon of the ratio"})
    cliprange_value: float = field(default=0.2, metadata={"help": "how far a value may move in a rollout"})
    vf_coef: float = field(default=0.1, metadata={"help": "weight of the value loss"})
    value: str = field(default="adapter", metadata={"help": "'adapter': its own; 'shared': a head on the policy"})
    adam_epsilon: float = field(default=1e-5)
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = self.rollout_batch_size // self.world_size
        mini_batch, rest = divmod(rows, self.num_mini_batches)
        wanted: int = self.per_device_train_batch_size
        self.per_device_train_batch_size: int = min(wanted, max(mini_batch, 1))
        if rest or rows * self.world_size != self.rollout_batch_size or mini_batch % self.per_device_train_batch_size:
            raise InputError(
                f"a rollout of {self.rollout_batch_size} episodes on {self.world_size} ranks cannot be cut into "
                f"{self.num_mini_batches} minibatches of passes of {self.per_device_train_batch_size}",
                "choose sizes that divide each other",
            )
        self.gradient_accumulation_steps = mini_batch // self.per_device_train_batch_size
        self.steps_per_rollout = self.num_ppo_epochs * self.num_mini_batches
        self.max_steps = -(-self.total_episodes // self.rollout_batch_size) * self.steps_per_rollout
        self.ignore_data_skip = True  # what the data loader gives is not used


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
        too_far: Asked after every rollout whether training should end.
    """

    def __init__(self, steps_per_rollout: int, too_far: Callable[[], bool]) -> None:
        self._steps = steps_per_rollout
        self._too_far = too_far
        self._save = self._stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs after every other callback, as it was added last."""
        self._save |= control.should_save
        self._stop |= control.should_training_stop
        if state.global_step % self._steps:
            control.should_save = control.should_training_stop = False
            return
        if self._too_far():
            self._save = self._stop = True
        control.should_save, control.should_training_stop = self._save, self._stop
        self._save = self._stop = False
