"""What a completion is worth: scorers, costs and their prices, and the shaper that makes one reward of them.

`Shaper` is loaded on first use: importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.rewards.shaped import ShapedReward as ShapedReward
    from prefopt.rewards.shaper import Shaper as Shaper

_HOME = {"ShapedReward": "shaped", "Shaper": "shaper"}
__all__ = ["ShapedReward", "Shaper"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prefopt.rewards' has no attribute {name!r}")
    return getattr(import_module(f"prefopt.rewards.{_HOME[name]}"), name)
