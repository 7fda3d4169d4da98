"""Preferences from models: sample completions, pair them, and let a judge say which one is better."""
