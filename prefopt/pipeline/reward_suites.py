"""Examine a reward on held-out pairs: accuracy, calibration, robustness, bias."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from prefopt.data.load import load_pairs
from prefopt.errors import DataError, Interrupted
from prefopt.evaluation.bias import bias
from prefopt.evaluation.calibration import calibration
from prefopt.evaluation.findings import Findings, ScoredPair, score_pairs_that_fit
from prefopt.evaluation.reward_accuracy import reward_accuracy
from prefopt.evaluation.robustness import robustness
from prefopt.pipeline.context import StageContext
from prefopt.recipe.schema import DataSpec, EvaluateSpec
from prefopt.records import PreferencePair
from prefopt.rewards.scorers import Scorer


def examine_reward(
    spec: EvaluateSpec, scorer: Scorer, suites: Collection[str], data: Mapping[str, DataSpec], context: StageContext
) -> Findings:
    """Run suites on a reward.

    Args:
        spec: Names the pairs.
        scorer: What is examined.
        suites: Names of `prefopt.recipe.options.suites.REWARD_SUITES`.
        data: Data sets by name.
        context: The stage's context.

    Raises:
        DataError: When no held-out pair has a label that prefers either answer, or none fits into the scorer.
        Interrupted: When the process was asked to stop.
    """
    loaded = load_pairs(spec.data, data, context.recipe.seed)
    pairs = [pair for pair in loaded.eval if pair.probability != 0.5]
    if not pairs:
        raise DataError(
            f"stage {context.stage}: no pairs of {', '.join(spec.data)} are held out",
            "give the data an eval_fraction > 0",
        )
    context.log(f"examining {scorer.name} on {len(pairs)} held-out pairs: {', '.join(suites)}")
    scored = _fitting(pairs, scorer, context)
    pairs, left_out = [item.pair for item in scored], len(pairs) - len(scored)
    other = load_pairs(spec.ood, data, context.recipe.seed).eval if spec.ood else []
    if other:
        other = [item.pair for item in _fitting(other, scorer, context)]
    makers = {
        "reward_accuracy": lambda: reward_accuracy(scored),
        "calibration": lambda: calibration(scored, context.seed),
        "robustness": lambda: robustness(pairs, scorer, context.seed, other),
        "bias": lambda: bias(pairs, scorer, loaded.train),
    }
    findings = Findings({"evaluate/pairs": float(len(pairs)), "evaluate/pairs_too_long": float(left_out)})
    for number, suite in enumerate(suites, start=1):
        if context.stop():
            raise Interrupted(f"stage {context.stage} stopped before {suite}")
        findings.add(makers[suite]())
        context.progress(number, len(suites), {})
    return findings


def _fitting(pairs: list[PreferencePair], scorer: Scorer, context: StageContext) -> list[ScoredPair]:
    """What a reward model's training drops as too long, its examination leaves out, and says so."""
    scored = score_pairs_that_fit(pairs, scorer)
    if not scored:
        raise DataError(f"stage {context.stage}: none of {len(pairs)} held-out pairs fits into {scorer.name}")
    if left_out := len(pairs) - len(scored):
        context.log(f"{left_out} of {len(pairs)} held-out pairs do not fit into {scorer.name} and are left out")
    return scored
