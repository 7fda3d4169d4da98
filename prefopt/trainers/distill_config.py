"""Options of distillation."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from prefopt.errors import InputError
from prefopt.losses.distill import Target
from prefopt.trainers.collapse import CollapseLimits


@dataclass
class DistillConfig(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` and distillation's own; batch sizes count rows."""

    divergence: str = field(default="forward", metadata={"help": "'forward' or 'reverse' KL of soft rows"})
    top_k: int | None = field(default=None, metadata={"help": "the teacher's likeliest tokens that are told apart"})
    on_policy: bool = field(default=False, metadata={"help": "rows without a completion: the student answers"})
    max_new_tokens: int = field(default=64, metadata={"help": "the student's own answers are cut there"})
    temperature: float = field(default=1.0, metadata={"help": "of the student's own answers, on policy"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    guards: CollapseLimits = field(default=CollapseLimits(), metadata={"help": "what is no collapse yet"})
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)
    include_num_input_tokens_seen: str = field(default="no", metadata={"help": "the trainer counts them itself"})

    def target(self) -> Target:
        """What the student is to be like."""
        if self.divergence not in ("forward", "reverse"):
            raise InputError(f"divergence '{self.divergence}' is not known", "known: forward, reverse")
        return Target(self.divergence, self.top_k)  # type: ignore[arg-type]
