"""From a recipe's scorer to something that scores: gold, a word list, or the reward model of an earlier stage."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from prefopt.errors import InputError
from prefopt.models.reward_artefact import open_reward
from prefopt.pipeline.base_model import load_weights, open_base
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.scorers import ScorerSpec
from prefopt.rewards.model import RewardModelScorer
from prefopt.rewards.scorers import GoldScorer, LexiconScorer, Scorer
from prefopt.store.files import sha256_file


def open_scorer(spec: ScorerSpec, inputs: Inputs, context: StageContext, *, host: PeftModel | None = None) -> Scorer:
    """Open what a stage is judged by.

    Args:
        spec: Names it.
        inputs: Finished input stages, the reward stage among them.
        context: The stage's context.
        host: A base with adapters that reward models are to be hung on, beside them; loaded anew without it.

    Raises:
        InputError: When the stage that is named makes no reward model.
    """
    if spec.lexicon is not None:
        return LexiconScorer(Path(spec.lexicon))
    assert spec.model is not None  # the schema asks for one of the two
    if spec.model == GoldScorer.name:
        return GoldScorer()
    return _reward_model(spec.model, inputs, context, host)


def scorer_identity(spec: ScorerSpec, inputs: Inputs) -> list[object]:
    """What decides a score: the artefact, the file, or the name; never where it lies."""
    if spec.lexicon is not None:
        return ["lexicon", sha256_file(Path(spec.lexicon))]
    if spec.model is not None and spec.model in inputs:
        return ["reward", inputs[spec.model].manifest.sha256]
    return ["function", spec.model]


def _reward_model(stage: str, inputs: Inputs, context: StageContext, host: PeftModel | None) -> Scorer:
    if inputs[stage].kind != "reward":
        raise InputError(f"stage {stage} is of kind {inputs[stage].kind}, which scores nothing", "name a reward stage")
    base = open_base(inputs, context)
    model, artefact = open_reward(host or load_weights(base, context), inputs[stage].directory, stage)
    encoder = base.encoder(None, "trim_prompt")
    return RewardModelScorer(model, encoder, base.pad_token_id, name=stage, artefact=artefact)
