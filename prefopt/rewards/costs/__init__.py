"""Costs: numbers measured on completions, 0 where nothing is wrong, each with the spans of text that caused it.

They read text, and tokens where lengths are counted in tokens. Nothing here imports torch: the same costs serve the
rewards of PPO and of TRL's trainers, and the violation rates of an evaluation.
"""
