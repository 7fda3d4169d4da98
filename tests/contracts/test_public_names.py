"""What others may import. A name that goes, or comes, is a decision: change this list with it."""

from __future__ import annotations

import importlib
import inspect

import pytest

PUBLIC = {
    "prefopt": ["Recipe", "__version__", "run"],
    "prefopt.api": ["RunOptions", "RunSummary", "run"],
    "prefopt.trainers": [
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
    ],
    "prefopt.losses.distill": ["DistillTokens", "Target", "distill_tokens", "divergence_of"],
    "prefopt.losses.dpo": [
        "DPOLossOutput",
        "DPO_LOSSES",
        "LENGTH_NORMALISED",
        "REFERENCE_FREE",
        "SORTED",
        "dpo_loss",
        "dr_dpo",
        "needs_reference",
        "tilted",
    ],
    "prefopt.losses.dpo_variants": [
        "DPO_LOSSES",
        "aot_loss",
        "aot_unpaired_loss",
        "apo_down_loss",
        "apo_zero_loss",
        "bco_pair_loss",
        "chipo_loss",
        "conservative_loss",
        "cpo_loss",
        "discopop_loss",
        "dpop_loss",
        "exo_pair_loss",
        "hinge_loss",
        "ipo_loss",
        "ipo_sum_loss",
        "nca_pair_loss",
        "odpo_loss",
        "orpo_loss",
        "rdpo_loss",
        "robust_loss",
        "ropo_loss",
        "rpo_loss",
        "sft_loss",
        "sigmoid_loss",
        "sigmoid_norm_loss",
        "simpo_loss",
        "sppo_hard_loss",
        "tdpo_loss",
    ],
    "prefopt.losses.logprobs": [
        "CompletionSums",
        "completion_logps",
        "completion_sums",
        "entropy",
        "exact_kl",
        "sums_of_tokens",
        "token_logps",
    ],
    "prefopt.losses.token_statistics": [
        "Head",
        "MAX_LOGITS",
        "TokenStatistics",
        "token_statistics",
    ],
    "prefopt.losses.pair_statistics": [
        "CompletionStatistics",
        "DPOOptions",
        "PairStatistics",
        "advantage",
        "logratio",
        "needed",
        "reference_summed",
        "score",
        "summed",
    ],
    "prefopt.losses.ppo": [
        "PPOOptions",
        "PolicyLoss",
        "ValueLoss",
        "explained_variance",
        "gae",
        "kl_tokens",
        "masked_mean",
        "masked_whiten",
        "policy_loss",
        "ppo_loss",
        "token_rewards",
        "value_loss",
    ],
    "prefopt.losses.reward": ["RewardLoss", "labelled", "rating_loss", "reward_loss"],
    "prefopt.rewards": ["ShapedReward", "Shaper"],
    "prefopt.rewards.penalties": [
        "LEAST_WINDOW",
        "Multiplier",
        "Penalty",
        "Price",
        "ScheduledPrice",
        "price_of",
        "window_of",
    ],
    "prefopt.rewards.costs.sample": [
        "Cost",
        "MOST_SPANS",
        "Measured",
        "NOTHING",
        "RuleCost",
        "Sample",
        "costs_to_json",
        "merged",
    ],
    "prefopt.rewards.costs.registry": ["OPENED", "RULES", "rule_cost"],
    "prefopt.rewards.model": ["RewardModelScorer"],
    "prefopt.rewards.scorers": ["GoldScorer", "GoldTermsScorer", "LexiconScorer", "Scorer"],
}


def exported(module: str) -> list[str]:
    """`__all__`, or else the names without underscore that the module itself defines."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    if names is None:
        own = {name: value for name, value in vars(loaded).items() if not name.startswith("_")}
        names = [name for name, value in own.items() if getattr(value, "__module__", module) == module]
        names = [name for name in names if not inspect.ismodule(own[name]) and name != "annotations"]
    return sorted(names)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_these(module: str) -> None:
    assert exported(module) == sorted(PUBLIC[module])


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there_and_explained(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in PUBLIC[module]:
        value = getattr(loaded, name)
        assert not callable(value) or inspect.getdoc(value), name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    for module in ("prefopt", "prefopt.trainers"):
        with pytest.raises(AttributeError, match="no attribute 'nope'"):
            _ = importlib.import_module(module).nope
