"""A LoRA adapter on top of another, as one adapter that is complete against the base.

Two low-rank updates of the same weight are one whose rank is the sum of theirs (arXiv 2106.09685, equation 3, twice):

    s1 B1 A1 + s2 B2 A2 = s [s1/s B1, s2/s B2] [A1; A2]

Nothing is approximated: s is the upper adapter's scaling where that is a power of two, and 1 otherwise, so that
dividing by it and multiplying by it again is exact. A module that only one of the two adapts keeps that one's rank, and
`rank_pattern` and `alpha_pattern` of PEFT say which rank a module has.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from prefopt.errors import InputError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# What makes the update of a weight something else than a product of two matrices, or adds to it.
_NOT_LOW_RANK = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
)


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds.

    Attributes:
        config: Its shape.
        tensors: By the names that PEFT gives them in files, which have no adapter's name in them.
    """

    config: LoraConfig
    tensors: Mapping[str, Tensor]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every module it adapts, by the module's name in the base."""
        return {name: int(self.tensors[_PREFIX + name + _A].shape[0]) for name in self.modules}

    @property
    def modules(self) -> list[str]:
        """Names of the modules it adapts."""
        return [key.removeprefix(_PREFIX).removesuffix(_A) for key in self.tensors if key.endswith(_A)]

    def scaling(self, module: str) -> float:
        """What multiplies B A x of a module."""
        config = self.config
        rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), module), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), module), config.lora_alpha)
        return float(alpha / math.sqrt(rank) if config.use_rslora else alpha / rank)


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a PEFT folder."""
    return Adapter(LoraConfig.from_pretrained(str(directory)), load_peft_weights(str(directory), device="cpu"))


def write_adapter(adapter: Adapter, directory: Path) -> None:
    """Write a PEFT folder; it is made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    adapter.config.save_pretrained(str(directory))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def flattened(lower: Adapter, upper: Adapter) -> Adapter:
    """One adapter that does what two do together.

    Args:
        lower: Complete against the base.
        upper: Trained with `lower` active; what it saves beside LoRA (a head) is kept.

    Raises:
        InputError: When one of them is not a pair of matrices for each module (DoRA, biases, embeddings …).
    """
    for adapter in (lower, upper):
        _require_low_rank(adapter.config)
    below, above = lower.ranks, upper.ranks
    saved = {key: tensor for key, tensor in upper.tensors.items() if ".lora_" not in key}
    _require_pairs(lower, {})
    _require_pairs(upper, saved)
    scale = _scale(upper)
    tensors = dict(saved)
    for module in dict.fromkeys((*lower.modules, *upper.modules)):
        parts = [adapter for adapter in (lower, upper) if module in adapter.ranks]
        tensors[_PREFIX + module + _A] = torch.cat([_exact(part.tensors[_PREFIX + module + _A]) for part in parts])
        tensors[_PREFIX + module + _B] = torch.cat(
            [_exact(part.tensors[_PREFIX + module + _B]) * (part.scaling(module) / scale) for part in parts], dim=1
        )
    ranks = {module: below.get(module, 0) + above.get(module, 0) for module in (*below, *above)}
    return Adapter(_config(lower.config, upper.config, ranks, scale), tensors)


def _exact(tensor: Tensor) -> Tensor:
    """Half precision would round what is multiplied."""
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def _scale(upper: Adapter) -> float:
    scalings = {upper.scaling(module) for module in upper.modules}
    scale = scalings.pop() if len(scalings) == 1 else 1.0
    return scale if math.frexp(scale)[0] == 0.5 else 1.0


def _require_low_rank(config: LoraConfig) -> None:
    found = [name for name in _NOT_LOW_RANK if getattr(config, name, None)]
    found += [f"bias={config.bias}"] if config.bias != "none" else []
    if found:
        raise InputError(
            f"an adapter with {', '.join(found)} cannot be made one with the adapter it stands on",
            "leave `lora` out of the stage: it then trains a copy of the adapter it starts from, in its shape",
        )


def _require_pairs(adapter: Adapter, saved: Mapping[str, Tensor]) -> None:
    known = {_PREFIX + module + part for module in adapter.modules for part in (_A, _B)}
    unknown = sorted(adapter.tensors.keys() - known - saved.keys())
    if unknown:
        raise InputError(
            f"an adapter with the tensor {unknown[0]} cannot be made one with the adapter it stands on",
            "lora_target_modules must name linear layers, and no module may be saved whole",
        )


def _config(lower: LoraConfig, upper: LoraConfig, ranks: Mapping[str, int], scale: float) -> LoraConfig:
    config: LoraConfig = copy.deepcopy(upper)
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = _pattern(ranks, common)
    config.r, config.lora_alpha, config.use_rslora = common, _alpha(scale, common), False
    config.rank_pattern = pattern
    config.alpha_pattern = {name: _alpha(scale, rank) for name, rank in pattern.items()}
    config.target_modules = _targets((lower, upper), list(ranks))
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.init_lora_weights = True
    return config


def _alpha(scale: float, rank: int) -> float:
    """So that alpha / rank is the scale, exactly: a power of two times a whole number loses nothing."""
    return int(scale * rank) if float(scale * rank).is_integer() else scale * rank


def _targets(configs: Sequence[LoraConfig], modules: Sequence[str]) -> list[str]:
    """Short names where both adapters were made by short names; otherwise every module's own."""
    short = all(
        not isinstance(config.target_modules, str) and not config.exclude_modules and config.layers_to_transform is None
        for config in configs
    )
    return sorted({name for config in configs for name in config.target_modules}) if short else sorted(modules)


def _pattern(ranks: Mapping[str, int], common: int) -> dict[str, int]:
    """PEFT's `rank_pattern`: by the last part of the name where all modules of that name have one rank."""
    by_name: dict[str, set[int]] = {}
    for module, rank in ranks.items():
        by_name.setdefault(module.rpartition(".")[2], set()).add(rank)
    found: dict[str, int] = {}
    for module, rank in ranks.items():
        name = module.rpartition(".")[2]
        if by_name[name] != {common}:
            found[name if len(by_name[name]) == 1 else module] = rank
    return dict(sorted(found.items()))
