"""`kind: rloo`: REINFORCE with a leave-one-out baseline, of the policy that `init` names, against itself."""

from __future__ import annotations

from prefopt.pipeline.adapters import Opened
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.groups import GroupMethod, open_group_stage, run_group_stage
from prefopt.recipe.schema import RLOOSpec
from prefopt.trainers.trl import RLOOConfig, RLOOTrainer

_METHOD = GroupMethod(RLOOConfig, RLOOTrainer, ("normalize_advantages",))


def run(spec: RLOOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to get more than the other answers to the same prompt."""
    return run_group_stage(spec, inputs, context, _METHOD)


def opened(spec: RLOOSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    return open_group_stage(spec, inputs, context, _METHOD)
