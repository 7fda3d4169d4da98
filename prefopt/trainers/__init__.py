"""Thin trainers over `transformers.Trainer`; the loop, mixed precision and sharding are Hugging Face's.

The names are loaded on first use: importing this package imports neither torch nor TRL.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.trainers.distill import DistillTrainer as DistillTrainer
    from prefopt.trainers.distill_config import DistillConfig as DistillConfig
    from prefopt.trainers.dpo import DPOConfig as DPOConfig
    from prefopt.trainers.dpo import DPOTrainer as DPOTrainer
    from prefopt.trainers.kept_shaper import KeepShaper as KeepShaper
    from prefopt.trainers.ppo import PPOTrainer as PPOTrainer
    from prefopt.trainers.ppo_config import PPOConfig as PPOConfig
    from prefopt.trainers.pretrain import PretrainTrainer as PretrainTrainer
    from prefopt.trainers.reward import RewardTrainer as RewardTrainer
    from prefopt.trainers.reward_config import RewardConfig as RewardConfig
    from prefopt.trainers.trl import GRPOConfig as GRPOConfig
    from prefopt.trainers.trl import GRPOTrainer as GRPOTrainer
    from prefopt.trainers.trl import KTOConfig as KTOConfig
    from prefopt.trainers.trl import KTOTrainer as KTOTrainer
    from prefopt.trainers.trl import RLOOConfig as RLOOConfig
    from prefopt.trainers.trl import RLOOTrainer as RLOOTrainer
    from prefopt.trainers.trl import SFTTrainer as SFTTrainer

_HOME = {
    "DPOConfig": "dpo",
    "DPOTrainer": "dpo",
    "DistillConfig": "distill_config",
    "DistillTrainer": "distill",
    "GRPOConfig": "trl",
    "GRPOTrainer": "trl",
    "KTOConfig": "trl",
    "KeepShaper": "kept_shaper",
    "KTOTrainer": "trl",
    "PPOConfig": "ppo_config",
    "PPOTrainer": "ppo",
    "PretrainTrainer": "pretrain",
    "RLOOConfig": "trl",
    "RLOOTrainer": "trl",
    "RewardConfig": "reward_config",
    "RewardTrainer": "reward",
    "SFTTrainer": "trl",
}
__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "DistillConfig",
    "DistillTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "KeepShaper",
    "PPOConfig",
    "PPOTrainer",
    "PretrainTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTTrainer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prefopt.trainers' has no attribute {name!r}")
    return getattr(import_module(f"prefopt.trainers.{_HOME[name]}"), name)
