"""Options of trainers that compare completions of the same prompt, beside TRL's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefopt.trainers.reward_scaling import RewardScaling
from prefopt.trainers.rollout_loop import cut_rollout


@dataclass
class GroupConfig(RewardScaling):
    """How rollouts are sampled, scored and cut; mixed in before a configuration of TRL. Batch sizes count episodes."""

    total_episodes: int = field(default=10_000, metadata={"help": "completions sampled in all, up to a whole rollout"})
    rollout_batch_size: int = field(default=128, metadata={"help": "episodes between updates, over all ranks"})
    num_generations: int | None = field(default=8, metadata={"help": "episodes of a rollout that answer one prompt"})
    num_mini_batches: int = field(default=1, metadata={"help": "optimiser steps that use each episode once"})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "episodes of a forward and backward pass"})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "episodes sampled or scored together"})
    max_completion_length: int | None = field(default=64, metadata={"help": "completions are cut there"})
    min_new_tokens: int = field(default=0, metadata={"help": "no completion ends before; to measure the longest"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    beta: float = field(default=0.05, metadata={"help": "price of a nat of KL, in units of the reward"})
    learning_rate: float = field(default=1e-4)
    adam_epsilon: float = field(default=1e-5)
    gradient_checkpointing: bool = field(default=False)
    bf16: bool | None = field(default=False)
    remove_unused_columns: bool | None = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)

    def __post_init__(self) -> None:
        # TRL knows no minibatches: it is given sizes that it finds right, and those that are meant follow.
        rows, self.generation_batch_size, self.steps_per_generation = (
            self.per_device_train_batch_size,
            None,
            self.num_generations,
        )
        super().__post_init__()  # type: ignore[misc]
        ranks: int = self.world_size  # type: ignore[attr-defined]
        assert self.num_generations is not None
        self.per_device_train_batch_size, self.gradient_accumulation_steps = cut_rollout(
            self.rollout_batch_size, self.num_generations, self.num_mini_batches, rows=rows, ranks=ranks
        )
        self.generation_batch_size = self.rollout_batch_size
        self.steps_per_generation = self.num_mini_batches * self.gradient_accumulation_steps
        uses: int = self.num_iterations  # type: ignore[attr-defined]
        self.steps_per_rollout = uses * self.num_mini_batches
        self.max_steps = -(-self.total_episodes // self.rollout_batch_size) * self.steps_per_rollout
        self.ignore_data_skip = True  # what the data loader gives is not used

    @property
    def max_new_tokens(self) -> int:
        """`max_completion_length` by the name that it has in a recipe."""
        assert self.max_completion_length is not None
        return self.max_completion_length

    @property
    def stop(self) -> tuple[str, ...]:
        """No strings: TRL knows ends of completions by their tokens."""
        return ()
