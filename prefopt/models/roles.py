"""One frozen base, many roles: every role is a named LoRA adapter on the same base.

The policy of a stage starts as a copy of the adapter its `init` names, and that adapter, frozen beside it, is the
reference. Without `init` the policy is a new adapter and the reference is the base itself, adapters off. Where the
policy is to have another rank or other modules than the adapter it starts from, that adapter stays active below it,
frozen, and is the reference by itself; what is saved is one adapter that does what both do (`prefopt.models.flatten`).

PEFT's rules, which this module hides: activating an adapter sets `requires_grad` on it and clears it on the others, so
a switch between a forward and its backward silently loses gradients. The reference is therefore only ever active under
`torch.no_grad` and the policy is active again before anything is trained.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from prefopt.errors import IntegrityError
from prefopt.models.flatten import CONFIG_FILE, WEIGHTS_FILE, Adapter, flattened, read_adapter, write_adapter
from prefopt.models.targets import without_routers
from prefopt.recipe.schema import LoraSpec

POLICY = "policy"
REFERENCE = "reference"
REWARD = "reward"
VECTORS = "prompt_embeddings"  # of a soft prompt, in its folder
START = "start"  # what an adapter of another shape stands on
TEACHER = "teacher"  # frozen, where the policy learns from another than it started from
COPY = "ref"  # of the policy as it started, frozen, where TRL makes the reference
_STANDING = (POLICY, REWARD, COPY)


def belongs_to(name: str, adapter: str) -> bool:
    """Whether a parameter is of an adapter, by its name: modules of the base may be called as an adapter is."""
    return re.search(rf"(^|\.)(lora_\w+|modules_to_save|prompt_encoder)\.{re.escape(adapter)}(\.|$)", name) is not None


def lora_config(spec: LoraSpec) -> LoraConfig:
    """PEFT's configuration of a new adapter."""
    targets = spec.lora_target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )


def policy_on(
    base: PreTrainedModel, lora: LoraSpec, init: Path | None, *, reference: bool = True, reshape: bool = False
) -> PeftModel:
    """Hang a trainable policy on the base, and the frozen adapter it starts from as its reference.

    Args:
        base: The frozen base.
        lora: Shape of a new adapter.
        init: Adapter folder to start from; None starts a new adapter, which leaves the base's outputs unchanged.
        reference: Whether the method needs the reference; supervised fine-tuning does not.
        reshape: Whether the policy has the shape `lora` also with `init`, whose shape is kept otherwise.
    """
    model = adapter_on(base, lora_config(lora), init, POLICY, reshape=reshape)
    if init is not None and reference and START not in model.peft_config:
        model.load_adapter(init, REFERENCE, is_trainable=False)
        activate_trained(model, POLICY)
    return model


def adapter_on(base: PreTrainedModel, lora: LoraConfig, init: Path | None, name: str, *, reshape: bool) -> PeftModel:
    """Hang a trainable adapter on the base; its outputs are those of `init`, or of the base, until it is trained.

    Args:
        base: The frozen base.
        lora: Shape of a new adapter.
        init: Adapter folder to start from.
        name: Of the adapter.
        reshape: Whether the adapter has the shape `lora` also with `init`.
    """
    if init is not None and not reshape:
        return PeftModel.from_pretrained(base, init, adapter_name=name, is_trainable=True)
    model = get_peft_model(base, without_routers(lora, base), adapter_name=name)
    if init is None:
        return model
    new, old = adapter_of(model, name), read_adapter(init)
    if new.ranks == old.ranks:
        set_peft_model_state_dict(model, _rescaled(old, new.config), adapter_name=name)
    else:
        model.load_adapter(init, START, is_trainable=False)
        activate_trained(model, name)
    return model


def _rescaled(adapter: Adapter, config: LoraConfig) -> dict[str, torch.Tensor]:
    """An adapter's tensors for a configuration that differs in the scaling alone, so that they do the same."""
    tensors = dict(adapter.tensors)
    for module in adapter.modules:
        key = f"base_model.model.{module}.lora_B.weight"
        factor = adapter.scaling(module) / Adapter(config, {}).scaling(module)
        tensors[key] = tensors[key] * factor
    return tensors


def stack_of(model: PeftModel, adapter: str) -> list[str]:
    """The adapters that are active where `adapter` computes: it alone, or with the one that it stands on."""
    return [START, adapter] if START in model.peft_config and adapter in _STANDING else [adapter]


def set_active(model: PeftModel, adapters: Sequence[str]) -> None:
    """Compute with these adapters together, from now on; none of them is trainable afterwards.

    PEFT's own `set_adapter` takes one.
    """
    model.set_adapter(adapters[-1], inference_mode=True)
    if len(adapters) > 1:
        model.base_model.set_adapter(list(adapters), inference_mode=True)


@contextmanager
def left_as_found(model: PeftModel) -> Iterator[None]:
    """Whatever is activated within the block, afterwards the same adapters are active and the same weights trained."""
    active, trained = list(model.active_adapters), [each for each in model.parameters() if each.requires_grad]
    try:
        yield
    finally:
        set_active(model, active)
        for parameter in trained:
            parameter.requires_grad_(True)


def activate_trained(model: PeftModel, adapter: str) -> None:
    """Compute with an adapter, on what it stands on, and train it alone."""
    set_active(model, stack_of(model, adapter))
    model.set_requires_grad(adapter, requires_grad=True)


def reference_of(model: PeftModel) -> str | None:
    """Name of the adapter that the policy started from; None where it started from the base itself."""
    return next((name for name in (START, REFERENCE) if name in model.peft_config), None)


@contextmanager
def reference_active(model: PeftModel) -> Iterator[None]:
    """Within the block the model computes the reference; without gradients, and the policy is active again after it."""
    with frozen_active(model, reference_of(model)):
        yield


@contextmanager
def frozen_active(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """Within the block the model computes a frozen adapter, or the base; the policy is active again after it.

    Args:
        model: With an adapter named `policy`.
        adapter: The frozen one; None for the base itself, adapters off.
    """
    with torch.no_grad():
        if adapter is None:
            with model.disable_adapter():
                yield
            return
        set_active(model, [adapter])
        try:
            yield
        finally:
            activate_trained(model, POLICY)


def load_frozen(base: PreTrainedModel, adapters: dict[str, Path]) -> PeftModel:
    """Hang frozen adapters on the base by name, for evaluation.

    Args:
        base: The frozen base.
        adapters: Name of the role: adapter folder; at least one.
    """
    model: PeftModel | None = None
    for name, folder in adapters.items():
        if model is None:
            model = PeftModel.from_pretrained(base, folder, adapter_name=name, is_trainable=False)
        else:
            model.load_adapter(folder, name, is_trainable=False)
    if model is None:
        raise ValueError("no adapters given")
    return model.eval()


@contextmanager
def adapter_active(model: PeftModel | PreTrainedModel, name: str | None) -> Iterator[None]:
    """Within the block the model computes with the frozen adapter `name`; None means the base, adapters off."""
    if not isinstance(model, PeftModel):
        if name is not None:
            raise ValueError(f"no adapter {name!r}: the model has none")
        yield
    elif name is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(name, inference_mode=True)
        yield


def adapter_of(model: PeftModel, name: str) -> Adapter:
    """An adapter of a model, as its folder would hold it."""
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return Adapter(model.peft_config[name], tensors)


def save_adapter(model: PeftModel, adapter: str, directory: Path, base_name: str, *, complete: bool = True) -> None:
    """Write one adapter as a PEFT folder.

    Args:
        model: The model that has it.
        adapter: Its name on the model.
        directory: Where `adapter_config.json` and `adapter_model.safetensors` go.
        base_name: Recorded as `base_model_name_or_path`, where PEFT would write this machine's folder; kept when empty.
        complete: Whether the folder is complete against the base. Otherwise what the adapter stands on is left out, as
            in checkpoints, from which training goes on.
    """
    if complete and len(stack_of(model, adapter)) > 1:
        write_adapter(flattened(adapter_of(model, START), adapter_of(model, adapter)), directory)
    else:
        # PEFT would read and go on with a card that is there, also one that a kill has torn.
        (directory / "README.md").unlink(missing_ok=True)
        # Left to itself PEFT asks the Hub for the base's vocabulary size, by the name that is recorded here.
        model.save_pretrained(str(directory), selected_adapters=[adapter], save_embedding_layers=False)
        nested = directory / adapter
        if nested.is_dir():
            for file in nested.iterdir():
                shutil.move(file, directory / file.name)
            nested.rmdir()
        (directory / "README.md").unlink(missing_ok=True)
    _settle(directory, base_name)


def copy_complete(model: PeftModel, source: Path, directory: Path) -> None:
    """Copy an adapter's folder that `save_adapter` wrote with `complete=False`, completed by what it stands on.

    Args:
        model: The model that it was saved from.
        source: The folder.
        directory: Where the complete one goes.
    """
    if START in model.peft_config:
        write_adapter(flattened(adapter_of(model, START), read_adapter(source)), directory)
        _settle(directory, "")
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / name, directory / name)


def _settle(directory: Path, base_name: str) -> None:
    """The same configuration gives the same bytes on every machine."""
    config_file = directory / CONFIG_FILE
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name or config["base_model_name_or_path"]
    # PEFT keeps the targets as a set, whose order differs between processes.
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter_weights(model: PeftModel, adapter: str, directory: Path) -> None:
    """Put the saved weights into an adapter that the model already has.

    Raises:
        IntegrityError: When the folder does not hold exactly this adapter's tensors.
    """
    load_adapter_tensors(model, adapter, load_peft_weights(str(directory), device="cpu"), str(directory))


def load_adapter_tensors(
    model: PeftModel, adapter: str, tensors: Mapping[str, torch.Tensor], what: str = "the tensors"
) -> None:
    """The same with tensors as `adapter_of` gives them; `what` they are is said in errors."""
    if model.peft_config[adapter].is_prompt_learning:  # PEFT reads the vectors under another name than it reports
        if set(tensors) != {VECTORS}:
            raise IntegrityError(f"{what}: does not hold the soft prompt {adapter!r}: {', '.join(sorted(tensors))}")
        set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)
        return
    result = set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)
    missing = [key for key in result.missing_keys if belongs_to(key, adapter)]
    if missing or result.unexpected_keys:
        raise IntegrityError(
            f"{what}: does not hold the adapter {adapter!r}: {len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unknown"
        )
