"""Runs a recipe: the graph of its stages, what is done already, and a process of its own for each stage that is not.

The runner's side (`graph`, `keys`, `plan`, `runner`, `status`) imports no torch, so that a finished recipe answers at
once; only a stage's own process does (`server`, `preload`, `worker`, `stages/KIND`).
"""
