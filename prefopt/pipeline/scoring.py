"""From a recipe's scorer to something that scores, and what its scores depend on."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from prefopt.errors import InputError
from prefopt.models.loading import BaseLocation, load_classifier, number_of_output
from prefopt.models.reward_artefact import open_reward
from prefopt.pipeline.base_model import load_weights, open_base, trusts_code
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.registered import registered
from prefopt.recipe.scorers import ScorerSpec, SourceSpec
from prefopt.rewards.functions import load_function
from prefopt.rewards.model import RewardModelScorer
from prefopt.rewards.pretrained import PretrainedScorer
from prefopt.rewards.remote import RemoteScorer
from prefopt.rewards.scorers import GoldScorer, GoldTermsScorer, LexiconScorer, Scorer
from prefopt.rewards.weighted import WeightedScorer
from prefopt.store.files import disk_faults, sha256_file
from prefopt.store.hashing import HashCache

MAIN = "main"


# Of what lies in files, so that a model is read in full once in a process and not for every question.
_HASHES = HashCache(None)


def open_scorer(spec: SourceSpec, inputs: Inputs, context: StageContext, *, host: PeftModel | None = None) -> Scorer:
    """Open what a stage is judged by.

    Args:
        spec: Names it.
        inputs: Finished input stages, the reward stages among them.
        context: The stage's context.
        host: A base with adapters that reward models are to be hung on, beside them; loaded anew without it.

    Raises:
        InputError: When the stage that is named makes no reward model, or a function or model is none that scores.
        EnvironmentFault: When a file, a model or the token of a server is not there.
    """
    if isinstance(spec, ScorerSpec) and spec.weighted is not None:
        return WeightedScorer([(part.weight, open_scorer(part, inputs, context, host=host)) for part in spec.weighted])
    if spec.lexicon is not None:
        return LexiconScorer(Path(spec.lexicon))
    if spec.function is not None:
        return load_function(registered(spec.function), context.log)
    if spec.url is not None:
        return _remote(spec, spec.url, context)
    if spec.pretrained is not None:
        return _pretrained(spec, spec.pretrained, context)
    assert spec.model is not None  # the schema asks for one of them
    if spec.model == GoldScorer.name:
        return GoldTermsScorer(spec.without) if spec.without else GoldScorer()
    return _reward_model(spec.model, inputs, context, host)


def scorer_identity(spec: SourceSpec, inputs: Inputs) -> list[object]:
    """What decides a score: the artefact, the content, or the name; never where it lies."""
    if isinstance(spec, ScorerSpec) and spec.weighted is not None:
        return ["weighted", *([part.weight, scorer_identity(part, inputs)] for part in spec.weighted)]
    if spec.lexicon is not None:
        return ["lexicon", sha256_file(Path(spec.lexicon))]
    if spec.function is not None:
        found = registered(spec.function)
        with disk_faults(found.file):
            return ["registered", found.name, found.distribution, found.version, _HASHES.file(found.file)]
    if spec.url is not None:
        return ["url", spec.url]
    if spec.pretrained is not None:
        path, output = Path(spec.pretrained), [] if spec.output is None else [spec.output]
        if not path.is_dir():
            return ["pretrained", spec.pretrained, spec.revision or MAIN, *output]
        with disk_faults(path):
            return ["pretrained", _HASHES.tree(path), *output]
    if spec.model is not None and spec.model in inputs:
        return ["reward", inputs[spec.model].manifest.sha256]
    return ["function", spec.model, *([sorted(spec.without)] if spec.without else [])]


def _remote(spec: SourceSpec, url: str, context: StageContext) -> Scorer:
    context.log(f"{spec.label} scores: what is behind an address is not known, so a change there is not noticed")
    return RemoteScorer(
        url, name=spec.label, timeout=spec.timeout, batch_size=spec.batch_size, token_env=spec.token_env
    )


def _pretrained(spec: SourceSpec, path: str, context: StageContext) -> Scorer:
    location = BaseLocation(path, spec.revision or MAIN, spec.label)
    dtype = context.recipe.model.dtype
    model, tokenizer = load_classifier(location, dtype, spec.output, trust_remote_code=trusts_code(context))
    output = number_of_output(model.config, spec.output, spec.label)
    scorer = PretrainedScorer(model, tokenizer, name=spec.label, batch_size=spec.batch_size, output=output)
    form = "its chat template" if scorer.templated else "pairs of prompt and completion"
    context.log(f"{spec.label} reads {form}, {scorer.max_length} positions")
    return scorer


def _reward_model(stage: str, inputs: Inputs, context: StageContext, host: PeftModel | None) -> Scorer:
    if inputs[stage].kind != "reward":
        raise InputError(f"stage {stage} is of kind {inputs[stage].kind}, which scores nothing", "name a reward stage")
    base = open_base(inputs, context)
    model, artefact = open_reward(host or load_weights(base, context), inputs[stage].directory, stage)
    encoder = base.encoder(None, "trim_prompt")
    return RewardModelScorer(model, encoder, base.pad_token_id, name=stage, artefact=artefact)
