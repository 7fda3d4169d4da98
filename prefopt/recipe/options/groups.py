"""Options of group weights: rows of rare groups count more."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from prefopt.recipe.base import Spec, when_set
from prefopt.recipe.options.loss_costs import ViolatedCosts

GroupWeights = Literal["none", "inverse", "effective_number"]
GROUP_WEIGHTS: tuple[str, ...] = get_args(GroupWeights)

OF_RECORDS = ("source", "annotator")
"""Groups that every pair names."""
LONGER, VIOLATES = "longer", "violates"
"""Groups that are computed: whether the preferred answer is the longer one, or violates one of `group_costs`."""
_TAKEN = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "weight", "probability", "margin", "axes")


def _free(name: str) -> str:
    if name in _TAKEN or name.startswith(("score_", "reference_")):
        raise ValueError(f"'{name}' is a part of every row, and no group")
    return name


GroupColumn = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$"), AfterValidator(_free)]


class GroupCosts(Spec):
    """Costs that make groups; the specs that have them say by what groups are made."""

    group_costs: ViolatedCosts = when_set(
        (), description="of `group_by: violates`: costs that the preferred answer may violate"
    )

    @model_validator(mode="after")
    def _groups(self) -> Self:
        by = getattr(self, "group_by", None)
        if (by == VIOLATES) != bool(self.group_costs):
            raise ValueError("'group_costs' belongs to `group_by: violates`, which needs it")
        return self


class GroupOptions(GroupCosts):
    """Weights of groups, of kinds that had none before."""

    group_weights: GroupWeights = when_set(
        "none", description="rows of rare groups count more: 'inverse', or 'effective_number' (arXiv 1901.05555)"
    )
    group_by: GroupColumn = when_set(
        "source", description="a column of the data, such as 'source' or 'harm_category'; 'longer'; or 'violates'"
    )
    effective_number_beta: float = when_set(0.999, ge=0, lt=1, description="of 'effective_number'")
