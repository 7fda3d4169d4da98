"""What tests/benchmarks/training.py is made of: the two sides, each run in a process of its own, the plan, the page."""
