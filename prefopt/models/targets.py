"""Which modules `all-linear` means where some experts answer each token.

PEFT 0.21 with transformers 5 counts a router, and the stacked weights of the experts, among the linear layers. A router
that is trained with the rest sends tokens elsewhere than it did in the reference, and a stack of experts is no pair of
matrices for each module, so that an adapter on it cannot be flattened. Both are left out here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefopt.errors import InputError

ALL_LINEAR = "all-linear"
# What PEFT reads as the stacked weights of all experts where a model has them, wherever the module is.
_READ_AS_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def require_modules(base: PreTrainedModel, names: Sequence[str]) -> None:
    """Refuse names that no module of the model has.

    Args:
        base: The model.
        names: As PEFT takes them: a module's own name, or the end of its path.

    Raises:
        InputError: Naming those, and the linear layers that there are.
    """
    paths = [name for name, _ in base.named_modules()]
    unknown = [name for name in names if not any(path == name or path.endswith(f".{name}") for path in paths)]
    if unknown:
        head = base.get_output_embeddings()
        linear = {
            name.rpartition(".")[2]
            for name, module in base.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head
        }
        raise InputError(
            f"lora_target_modules: {type(base).__name__} has no module {', '.join(map(repr, unknown))}",
            f"its linear layers are {', '.join(sorted(linear))}",
        )


def expert_blocks(base: PreTrainedModel) -> list[str]:
    """Names of the modules in which a router chooses among experts."""
    return [name for name, module in base.named_modules() if isinstance(getattr(module, "experts", None), nn.Module)]


def without_routers(lora: LoraConfig, base: PreTrainedModel) -> LoraConfig:
    """The configuration itself, or, for `all-linear` on a model with experts, one that names the modules.

    Args:
        lora: Of a new adapter.
        base: That it will be on.

    Raises:
        InputError: When no linear layer outside of the experts is left.
    """
    blocks = expert_blocks(base) if lora.target_modules == ALL_LINEAR else []
    if not blocks:
        return lora
    within = tuple(f"{block}." for block in blocks)
    head = base.get_output_embeddings()
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    names = {
        name.rpartition(".")[2] for name, module in linear.items() if module is not head and not name.startswith(within)
    }
    names -= {name.rpartition(".")[2] for name in linear if name.startswith(within)}
    names -= set(_READ_AS_EXPERTS)
    if not names:
        raise InputError(
            f"all-linear means nothing on {type(base).__name__}: all its linear layers are in blocks of experts",
            "name the modules under lora_target_modules",
        )
    named = copy.deepcopy(lora)
    named.target_modules = sorted(names)
    return named
