"""Who teaches in a distill stage, and the student beside it, on one base where that can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from prefopt.errors import InputError
from prefopt.models.distill_policy import DistillPolicy, Teacher
from prefopt.models.loading import BaseLocation, load_base, load_tokenizer
from prefopt.models.roles import POLICY, TEACHER, activate_trained
from prefopt.models.soft_prompt import soft_prompt_on
from prefopt.pipeline.adapters import open_trained_policy
from prefopt.pipeline.base_model import OpenBase, adapter_of, load_weights, trusts_code
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.keys import KEY_FILE
from prefopt.recipe.schema import DistillSpec
from prefopt.store.files import read_json, sha256_json
from prefopt.store.hashing import HashCache


def open_student(spec: DistillSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> DistillPolicy:
    """The student that a stage trains, the policy it starts from, and its teacher.

    Raises:
        InputError: When another model as teacher has another vocabulary; for a soft prompt before a 4-bit adapter.
    """
    if spec.soft_prompt is not None:
        return _soft_prompt(spec, inputs, context, base)
    peft: PeftModel = open_trained_policy(spec, inputs, context, base, reference=True)
    if spec.teacher_model_name_or_path is not None:
        return DistillPolicy(peft, _other_model(spec.teacher_model_name_or_path, context, base))
    if spec.teacher is None or spec.teacher == spec.init:
        return DistillPolicy(peft, Teacher("start"))
    folder = adapter_of(spec.teacher, inputs)
    if folder is None:
        return DistillPolicy(peft, Teacher("start" if adapter_of(spec.init, inputs) is None else "base"))
    peft.load_adapter(folder, TEACHER, is_trainable=False)
    activate_trained(peft, POLICY)
    return DistillPolicy(peft, Teacher("adapter"))


def _soft_prompt(spec: DistillSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> DistillPolicy:
    """Vectors before a frozen model: the base, or what `init` made of it."""
    assert spec.soft_prompt is not None
    count, text = spec.soft_prompt.num_virtual_tokens, spec.soft_prompt.prompt_tuning_init_text
    peft = soft_prompt_on(_with_adapter(spec.init, inputs, context, base), base.tokenizer, count, text)
    if spec.teacher_model_name_or_path is not None:
        return DistillPolicy(peft, _other_model(spec.teacher_model_name_or_path, context, base))
    if spec.teacher is None or adapter_of(spec.teacher, inputs) == adapter_of(spec.init, inputs):
        return DistillPolicy(peft, Teacher("start"))
    # What the vectors stand before has its adapter in its weights, so another adapter needs a base of its own.
    return DistillPolicy(peft, Teacher("model", _with_adapter(spec.teacher, inputs, context, base).eval()))


def _with_adapter(stage: str | None, inputs: Inputs, context: StageContext, base: OpenBase) -> PreTrainedModel:
    """The base with a stage's adapter in its weights."""
    weights, folder = load_weights(base, context), adapter_of(stage, inputs)
    if folder is None:
        return weights
    if context.recipe.model.load_in_4bit:
        raise InputError(
            f"stage {context.stage}: a soft prompt stands before {stage}, whose adapter does not fit into 4 bits",
            "leave out 'load_in_4bit', or 'init'",
        )
    merged: PreTrainedModel = PeftModel.from_pretrained(weights, folder).merge_and_unload()
    return merged


def teacher_identity(spec: DistillSpec, inputs: Inputs, context: StageContext) -> str:
    """What decides what the teacher says, beside what it reads and how it is sampled: hashes, never places."""
    if spec.teacher_model_name_or_path is not None:
        path = Path(spec.teacher_model_name_or_path)
        return sha256_json(["model", HashCache(None).tree(path) if path.is_dir() else str(path)])
    name = spec.teacher or spec.init
    if name is not None and name in inputs and inputs[name].kind != "pretrain":
        return inputs[name].manifest.sha256
    key: dict[str, Any] = read_json(context.directory / KEY_FILE)
    bases = [stage.manifest.sha256 for stage in inputs.values() if stage.kind == "pretrain"]
    return sha256_json(["base", key["model"], key["versions"], sorted(bases)])


def _other_model(path: str, context: StageContext, base: OpenBase) -> Teacher:
    location = BaseLocation(path, "main", Path(path).name)
    theirs = load_tokenizer(location, trust_remote_code=trusts_code(context)).get_vocab()
    if theirs != base.tokenizer.get_vocab():
        raise InputError(
            f"{location.name} has another vocabulary than {base.location.name}, so their tokens are not the same",
            "name a teacher of the same family, or collect its answers and learn them with `kind: sft`",
        )
    model = load_base(location, context.recipe.model, trust_remote_code=trusts_code(context))
    return Teacher("model", model.eval())
