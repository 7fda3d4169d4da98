"""What a completion is worth: scorers now; costs, penalties and the shaper build on them."""
