"""What a stage can be checked with before the stages that it reads have run: fresh weights, and made-up answers.

A stand-in has the shape of what will be there, so the memory and the tokens of the stage are those it will have. Both
matrices of its adapters are random: an adapter that changes nothing could not tell a policy from the wrong reference.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from prefopt.data.load import load_prompts
from prefopt.models.heads import new_reward_model, save_reward
from prefopt.models.reward_artefact import RewardArtefact, write_artefact
from prefopt.models.roles import POLICY, REWARD, lora_config, policy_on, save_adapter
from prefopt.pipeline.adapters import lora_of
from prefopt.pipeline.base_model import PAIRS_FILE, load_weights, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageInput
from prefopt.recipe.references import AFTER, needs
from prefopt.recipe.schema import POLICY_KINDS, AdapterSpec, CollectSpec, LoraSpec, RewardSpec
from prefopt.records import conversation
from prefopt.store.manifest import Manifest

PROMPTS = 64
_SPREAD = 0.01  # of the second matrix of an adapter


def stand_ins(inputs: Inputs, context: StageContext) -> tuple[dict[str, StageInput], list[str]]:
    """Makes what is missing of a stage's inputs, in its folder.

    Args:
        inputs: Those that are there.
        context: The stage's context.

    Returns:
        All inputs by name, and a line about each one that was made.
    """
    complete, notes = dict(inputs), []
    roles = needs(context.recipe, context.stage)
    roles.pop(AFTER, None)
    # The base first: adapters are made for it.
    for name in dict.fromkeys(
        stage for role in sorted(roles, key=lambda role: role != "model") for stage in roles[role]
    ):
        if name in complete:
            continue
        kind = context.recipe.stages[name].kind
        make, what = _MAKERS[kind]
        made = StageInput(name, kind, context.directory / "stand-ins" / name, Manifest(name, kind, "", context.seed))
        made.directory.mkdir(parents=True)
        make(made, complete, context)
        complete[name] = made
        notes.append(f"{name} is not there yet: {what} in its place")
    return complete, notes


def _base(made: StageInput, inputs: Inputs, context: StageContext) -> None:
    spec = context.recipe.stages[made.stage]
    # By name: the registry of stages imports them so as well.
    stage = import_module("prefopt.pipeline.stages.pretrain").opened(spec, {}, replace(context, stage=made.stage))
    stage.load().save_pretrained(made.directory / "model")
    stage.tokenizer.save_pretrained(made.directory / "model")


def _adapter(made: StageInput, inputs: Inputs, context: StageContext) -> None:
    base = open_base(inputs, context)
    weights = load_weights(base, context)
    model = policy_on(weights, _shape(made.stage, weights, context), None)
    _spread(model)
    save_adapter(model, POLICY, made.directory / "adapter", base.location.name)


def _reward(made: StageInput, inputs: Inputs, context: StageContext) -> None:
    spec = context.recipe.stages[made.stage]
    assert isinstance(spec, RewardSpec)
    axes = (REWARD, spec.second_axis) if spec.second_axis else (REWARD,)
    members = spec.ensemble if spec.ensemble_kind == "adapters" else 1
    outputs = spec.ensemble // members * len(axes)
    folders = tuple(f"adapter-{number}" if number else "adapter" for number in range(members))
    base = open_base(inputs, context)
    weights = load_weights(base, context)
    model = new_reward_model(weights, lora_config(_shape(made.stage, weights, context)), None, outputs)
    _spread(model.peft)
    for folder in folders:
        save_reward(model.peft, REWARD, model.score, made.directory / folder, base.location.name)
    write_artefact(made.directory, RewardArtefact(folders, axes))


def _shape(stage: str, weights: PreTrainedModel, context: StageContext) -> LoraSpec:
    """The shape of a stage's adapter: its own, or that of the adapter it starts from."""
    spec = context.recipe.stages[stage]
    assert isinstance(spec, AdapterSpec)
    while spec.lora is None and spec.init is not None:
        before = context.recipe.stages.get(spec.init)
        if not isinstance(before, AdapterSpec):
            break
        spec = before
    return lora_of(spec, weights, context)


def _spread(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=_SPREAD)


def _pairs(made: StageInput, inputs: Inputs, context: StageContext) -> None:
    """Pairs of random words, of as many tokens as completions may have, for the longest prompts."""
    spec = context.recipe.stages[made.stage]
    assert isinstance(spec, CollectSpec)
    base = open_base(inputs, context)
    prompts = load_prompts(spec.prompts, context.recipe.data, context.recipe.seed)
    special = set(base.tokenizer.all_special_ids)
    texts = {token: base.tokenizer.decode([token]) for token in range(len(base.tokenizer)) if token not in special}
    words = [token for token, text in texts.items() if text.isprintable() and "\ufffd" not in text]
    rng = random.Random(context.seed)

    def answer() -> str:
        text: str = base.tokenizer.decode(rng.choices(words, k=spec.max_new_tokens - 1))
        return text.strip() or "word"

    lines = []
    for part in (prompts.train, prompts.eval):
        longest = sorted(part, key=lambda prompt: -sum(len(message.content) for message in prompt))
        for prompt in longest[:PROMPTS]:
            lines.append(
                json.dumps(
                    {"prompt": conversation(prompt), "chosen": answer(), "rejected": answer(), "probability": 1.0}
                )
            )
    (made.directory / PAIRS_FILE).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


_Maker = Callable[[StageInput, Inputs, StageContext], None]
_MAKERS: dict[str, tuple[_Maker, str]] = {
    "pretrain": (_base, "a base of its shape with random weights"),
    **{kind: (_adapter, "a fresh adapter") for kind in POLICY_KINDS},
    "reward": (_reward, "a fresh adapter with a head"),
    "collect": (_pairs, "pairs of random words"),
}
