"""Options of the DPO losses; `prefopt.losses.dpo_variants` implements one function for each name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from prefopt.recipe.base import list_as_tuple, name_as_tuple, unique, when_set
from prefopt.recipe.options.groups import GroupOptions
from prefopt.recipe.options.loss_costs import FlaggingCosts, LossCosts, SequenceUnlikelihoodSpec, ViolatedCosts

DPOLossType = Literal[
    "sigmoid",
    "cdpo",
    "robust",
    "hinge",
    "ipo",
    "ipo_sum",
    "sigmoid_norm",
    "exo_pair",
    "discopop",
    "rdpo",
    "chipo",
    "dpop",
    "tdpo",
    "ropo",
    "rpo",
    "odpo",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "aot",
    "aot_unpaired",
    "sft",
    "simpo",
    "cpo",
    "orpo",
]

DIVERGENT = frozenset(
    {"sigmoid", "cdpo", "robust", "hinge", "ipo", "ipo_sum", "sigmoid_norm"}
    | {"exo_pair", "discopop", "rdpo", "ropo", "rpo", "odpo"}
)
"""Losses that compare scores, and so know other divergences than the reverse KL; `sft` has no divergence at all."""

LENGTH_NORMALISED = frozenset({"ipo", "sigmoid_norm"})

SORTED = frozenset({"aot", "aot_unpaired"})

REFERENCE_FREE = frozenset({"sft", "simpo", "cpo", "orpo"})

LOSSES_OF: Mapping[str, frozenset[str]] = {
    "label_smoothing": frozenset({"cdpo", "robust", "exo_pair", "aot", "aot_unpaired"}),
    "f_divergence_type": DIVERGENT,
    "f_alpha_divergence_coef": DIVERGENT,
    "simpo_gamma": frozenset({"simpo"}),
    "cpo_alpha": frozenset({"cpo"}),
    "orpo_lambda": frozenset({"orpo"}),
    "discopop_tau": frozenset({"discopop"}),
    "rdpo_alpha": frozenset({"rdpo"}),
    "chipo_clip": frozenset({"chipo"}),
    "dpop_lambda": frozenset({"dpop"}),
    "tdpo_alpha": frozenset({"tdpo"}),
    "ropo_alpha": frozenset({"ropo"}),
    "rpo_eta": frozenset({"rpo"}),
    "odpo_alpha": frozenset({"odpo"}),
    "focal_gamma": frozenset({"sigmoid"}),
}
"""Which losses read an option; an option that none of a stage's losses reads is refused."""

LossTypes = Annotated[
    tuple[DPOLossType, ...],
    BeforeValidator(name_as_tuple, json_schema_input_type=DPOLossType | list[DPOLossType]),
    AfterValidator(unique),
    Field(min_length=1),
]
LossWeights = Annotated[
    tuple[float, ...], BeforeValidator(list_as_tuple, json_schema_input_type=list[float]), Field(min_length=1)
]


class DPOLossOptions(GroupOptions):
    """The loss of a `dpo` stage; names are TRL's where TRL has the option."""

    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference; see docs/algorithms/dpo.md")
    loss_type: LossTypes = Field(("sigmoid",), description="a loss, or a list of losses that are added")
    loss_weights: LossWeights | None = Field(None, description="weight of each loss of the list; 1 by default")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is wrong")
    ld_alpha: float | None = Field(
        None, ge=0, le=1, description="weight of tokens beyond the shorter answer (LD-DPO, arXiv 2409.06411)"
    )
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl", description="what keeps the policy at the reference (arXiv 2309.16240)"
    )
    f_alpha_divergence_coef: float = Field(0.5, gt=0, lt=1, description="α of alpha_divergence")
    use_weighting: bool = Field(False, description="weigh pairs by their likelihood (WPO, arXiv 2406.11827)")
    simpo_gamma: float = Field(0.5, ge=0, description="target margin of simpo")
    cpo_alpha: float = Field(1.0, ge=0, description="weight of the likelihood in cpo")
    orpo_lambda: float = Field(0.1, gt=0, description="weight of the odds ratio in orpo")
    discopop_tau: float = Field(0.05, gt=0, description="temperature of discopop's mixture")
    rdpo_alpha: float = Field(0.01, ge=0, description="price of a token in rdpo")
    chipo_clip: float = Field(10.0, gt=0, description="half of the largest margin in chipo")
    dpop_lambda: float = Field(50.0, ge=0, description="weight of a fall of the chosen answer in dpop")
    tdpo_alpha: float = Field(0.5, ge=0, description="weight of the sequential divergences in tdpo")
    ropo_alpha: float = Field(2.0, ge=1, description="weight of the bounded part in ropo")
    rpo_eta: float = Field(1.0, gt=0, description="what a unit of the pairs' margin is worth in rpo")
    odpo_alpha: float = Field(1.0, ge=0, description="what the pairs' margin is multiplied with in odpo")
    dr_beta: float | None = Field(
        None, gt=0, description="count pairs of high loss less, the more the smaller it is (Dr. DPO, arXiv 2407.07880)"
    )
    focal_gamma: float = when_set(
        0.0, ge=0, description="takes weight from pairs that sigmoid ranks right already (arXiv 1708.02002)"
    )
    cost_margin: LossCosts = when_set(
        (), description="costs that the policy is to pay beside what labels say (MODPO, arXiv 2310.03708)"
    )
    unlikelihood: FlaggingCosts = when_set(
        (), description="costs; tokens of chosen answers that caused one are unlearned (arXiv 1908.04319)"
    )
    sequence_unlikelihood: SequenceUnlikelihoodSpec | None = when_set(
        None, description="tokens of the policy's own answers that caused a cost are unlearned as well"
    )
    violations: ViolatedCosts = when_set((), description="costs that no preferred answer may violate")
    on_violation: Literal["downweight", "relabel", "drop"] = when_set(
        "downweight",
        description="what becomes of a pair whose preferred answer violates one; 'relabel' prefers the other answer, "
        "and drops the pair where that violates one as well",
    )
    violation_weight: float = when_set(
        0.5, ge=0, lt=1, description="what 'downweight' multiplies the pair's weight with"
    )
