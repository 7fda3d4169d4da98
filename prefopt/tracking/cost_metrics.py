"""Metrics of costs: of what they are priced at in rewards, and of what they flag in losses."""

from __future__ import annotations

from typing import Literal

Better = Literal["higher", "lower"]

COSTS: tuple[tuple[str, str, str, Better | None], ...] = (
    ("penalty/NAME/cost", "Mean cost of the rollout's completions, as measured.", "", "lower"),
    ("penalty/NAME/rate", "Share of the rollout's completions that violate: their cost is above its threshold.", "",
     "lower"),
    ("penalty/NAME/expected_rate", "The same by how likely completions were to violate, before they were drawn.", "",
     "lower"),
    ("penalty/NAME/weight", "What a cost of 1 takes off the reward.", "SD of the reference's rewards", None),
    ("penalty/NAME/term", "What the penalty takes off an episode's reward, on average.", "reward", None),
    ("penalty/NAME/level", "Rate or mean over the window of episodes that a learned weight answers to.", "", "lower"),
    ("shaped/score", "Score after it was normalised and bounded, before penalties, on average.", "reward", "higher"),
    ("shaped/missing_eos", "What a missing end takes off, on average, beside penalties.", "reward", None),
    ("shaped/clip", "What cutting the sum of all terms changes, on average.", "reward", None),
    ("shaped/price_unit", "What a weight of 1 takes off for a cost of 1: a deviation of the reference's rewards.",
     "reward", None),
    ("collect/shaped_reward", "What answers are paired and labelled by: the reward minus what costs take off.", "",
     "higher"),
    ("collect/dropped_rate", "Share of answers that are in no pair, as they violate a cost.", "", "lower"),
    ("sft/flagged_probability", "Probability of the tokens that a cost has flagged, which are unlearned.", "", "lower"),
    ("sequence_unlikelihood/loss", "Weighted -log(1 - p) of flagged tokens in the policy's own greedy answers, per "
     "token of these.", "nats", "lower"),
    ("sequence_unlikelihood/flagged_share", "Share of the tokens of these answers that a cost has flagged.", "",
     "lower"),
    ("sequence_unlikelihood/NAME/rate", "Share of these answers that violate: their cost is above its threshold.", "",
     "lower"),
    ("dpo/unlikelihood", "Weighted -log(1 - p) of flagged tokens, per token of the chosen answer.", "nats", "lower"),
    ("dpo/cost_margin", "Cost of the rejected answer minus that of the chosen one.", "nats × beta", None),
)  # fmt: skip
