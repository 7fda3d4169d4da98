"""How good a policy is: scores, wins against a baseline, distance from it, each with an interval."""
