"""Kinds that sample from their policy and learn from rewards: what they call alike, and what is the same by two names.

Plain words, so that whoever needs them imports nothing else.
"""

from __future__ import annotations

ONLINE_KINDS = ("ppo", "grpo", "rloo")

SAME_KEYS = {"num_ppo_epochs": "num_iterations", "num_iterations": "num_ppo_epochs"}
"""Keys of some of them, and the key of others that is the same: how often each episode is used."""

SAME_METRICS = frozenset(
    "score score_finished score_truncated disagreement kl entropy length eos_rate repetition episodes "
    "rollout_seconds sampling_seconds scoring_seconds".split()
)
"""Metrics that mean the same for all of them: `ppo/kl` is what `grpo/kl` is."""

LIKE_METRICS = frozenset({"reward", "clip_fraction"})
"""Metrics that all of them have, and that do not mean quite the same: a bound on one is none on another."""
