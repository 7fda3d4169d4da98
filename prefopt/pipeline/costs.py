"""From a recipe's costs and penalties to something that measures, and prices."""

from __future__ import annotations

from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.scoring import open_scorer
from prefopt.recipe.options.costs import ClassifierCost, CostSpec, PluginCost
from prefopt.recipe.options.penalties import AnyPenalty
from prefopt.recipe.registered import COSTS, registered
from prefopt.recipe.scorers import SourceSpec
from prefopt.rewards.costs.outside import Classifier, Plugin
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.costs.sample import Cost
from prefopt.rewards.functions import imported
from prefopt.rewards.penalties import Penalty


def open_cost(spec: CostSpec, inputs: Inputs, context: StageContext) -> Cost:
    """Open what measures a cost.

    Args:
        spec: Options.
        inputs: Finished input stages.
        context: The stage's context.

    Raises:
        InputError: When a function cannot be imported, or a model is no classifier.
        DataError: When a word list is none.
        EnvironmentFault: When a file or a model is not there.
    """
    if isinstance(spec, ClassifierCost):
        source = SourceSpec(
            pretrained=spec.pretrained, revision=spec.revision, output=spec.output, batch_size=spec.batch_size
        )
        return Classifier(spec, open_scorer(source, inputs, context))
    if isinstance(spec, PluginCost):
        return Plugin(spec, imported(registered(spec.function, COSTS), "cost", context.log))
    return rule_cost(spec)


def open_penalty(spec: AnyPenalty, inputs: Inputs, context: StageContext) -> Penalty:
    """Open a cost with its price; raises as `open_cost`."""
    return Penalty.of(spec, open_cost(spec, inputs, context))
