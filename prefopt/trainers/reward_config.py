"""Options of the reward trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from prefopt.errors import InputError
from prefopt.recipe.options.groups import GROUP_WEIGHTS
from prefopt.recipe.options.reward import HEADS

_KNOWN = {"head": HEADS, "group_weights": GROUP_WEIGHTS}


@dataclass
class RewardConfig(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` and the reward model's own; batch sizes count pairs."""

    center_rewards_coefficient: float = field(default=0.0, metadata={"help": "pulls the scores to 0"})
    head: str = field(default="pairwise", metadata={"help": "'pairwise': choices; 'regression': absolute ratings"})
    second_axis: str | None = field(default=None, metadata={"help": "also score this axis of the rows' `axes`"})
    margin_scale: float = field(default=0.0, metadata={"help": "the rows' `margin` times this is asked for"})
    focal_gamma: float = field(default=0.0, metadata={"help": "takes weight from pairs that are ranked right"})
    length_debias: float = field(default=0.0, metadata={"help": "share of what length explains of the labels"})
    group_weights: str = field(default="none", metadata={"help": "'none', 'inverse' or 'effective_number'"})
    group_by: str = field(default="source", metadata={"help": "'longer', or a column of the rows"})
    effective_number_beta: float = field(default=0.999, metadata={"help": "of 'effective_number', in [0, 1)"})
    ensemble_heads: int = field(default=1, metadata={"help": "heads on the adapter, each with its own weights of rows"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} '{getattr(self, name)}' is not known", f"known: {', '.join(known)}")
