"""Names of the suites of an evaluation; `prefopt.evaluation` and the evaluate stage implement them."""

from __future__ import annotations

from typing import Literal, get_args

PolicySuite = Literal["win_rate", "violations", "kl", "text", "preference", "best_of_n", "overoptimisation"]
RewardSuite = Literal["reward_accuracy", "calibration", "robustness", "bias"]
Suite = PolicySuite | RewardSuite

POLICY_SUITES: tuple[str, ...] = get_args(PolicySuite)
REWARD_SUITES: tuple[str, ...] = get_args(RewardSuite)
