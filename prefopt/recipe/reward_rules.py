"""Rules for reward stages: which options mean something together."""

from __future__ import annotations

from collections.abc import Iterator

from prefopt.recipe.parts import Fault, Part

_OF_CHOICES = ("margin_scale", "focal_gamma", "length_debias", "center_rewards_coefficient", "calibrate", "second_axis")


def _ratings(part: Part) -> Iterator[Fault]:
    """A head that learns ratings learns no choices."""
    if part.get("head") != "regression":
        return
    for key in _OF_CHOICES:
        if part.get(key):
            yield Fault(key, f"'{key}' is for choices, and 'regression' learns ratings", "delete it")


def _without_use(part: Part) -> Iterator[Fault]:
    """Options of what is not asked for."""
    if part.given("group_by") and part.get("group_weights") == "none":
        yield Fault("group_by", "without 'group_weights' all groups count by their size", wrong=False)
    if part.given("effective_number_beta") and part.get("group_weights") != "effective_number":
        message = "only `group_weights: effective_number` uses it"
        yield Fault("effective_number_beta", message, wrong=False)
    if part.given("ensemble_kind") and part.get("ensemble") == 1:
        yield Fault("ensemble_kind", "one member is no ensemble", "write `ensemble: 4`", wrong=False)


REWARD_RULES = (_ratings, _without_use)
