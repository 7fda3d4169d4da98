"""`kind: grpo`: group relative policy optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

from prefopt.pipeline.adapters import Opened
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.groups import GroupMethod, open_group_stage, run_group_stage
from prefopt.recipe.schema import GRPOSpec
from prefopt.trainers.trl import GRPOConfig, GRPOTrainer

_METHOD = GroupMethod(GRPOConfig, GRPOTrainer, ("loss_type", "scale_rewards"))


def run(spec: GRPOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to get more than the other answers to the same prompt, per standard deviation."""
    return run_group_stage(spec, inputs, context, _METHOD)


def opened(spec: GRPOSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    return open_group_stage(spec, inputs, context, _METHOD)
