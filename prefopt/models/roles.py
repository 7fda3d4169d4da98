"""One frozen base, many roles: every role is a named LoRA adapter on the same base.

The policy of a stage starts as a copy of the adapter its `init` names, and that adapter, frozen beside it, is the
reference. Without `init` the policy is a new adapter and the reference is the base itself, adapters off.

PEFT's rules, which this module hides: activating an adapter sets `requires_grad` on it and clears it on the others, so
a switch between a forward and its backward silently loses gradients. The reference is therefore only ever active under
`torch.no_grad` and the policy is active again before anything is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from prefopt.errors import IntegrityError
from prefopt.recipe.schema import LoraSpec

POLICY = "policy"
REFERENCE = "reference"


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


def policy_on(base: PreTrainedModel, lora: LoraSpec, init: Path | None, *, reference: bool = True) -> PeftModel:
    """Hang a trainable policy on the base, and the frozen adapter it starts from as its reference.

    Args:
        base: The frozen base.
        lora: Shape of a new adapter; not used with `init`, whose shape is kept.
        init: Adapter folder to start from; None starts a new adapter, which leaves the base's outputs unchanged.
        reference: Whether the method needs the reference; supervised fine-tuning does not.
    """
    if init is None:
        return get_peft_model(base, lora_config(lora), adapter_name=POLICY)
    model = PeftModel.from_pretrained(base, init, adapter_name=POLICY, is_trainable=True)
    if reference:
        model.load_adapter(init, REFERENCE, is_trainable=False)
        model.set_adapter(POLICY)
    return model


@contextmanager
def reference_active(model: PeftModel) -> Iterator[None]:
    """Within the block the model computes the reference; without gradients, and the policy is active again after it."""
    with torch.no_grad():
        if REFERENCE not in model.peft_config:
            with model.disable_adapter():
                yield
            return
        model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(POLICY)


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


def save_adapter(model: PeftModel, adapter: str, directory: Path, base_name: str) -> None:
    """Write one adapter as a PEFT folder that is complete against the base.

    Args:
        model: The model that has it.
        adapter: Its name on the model.
        directory: Where `adapter_config.json` and `adapter_model.safetensors` go.
        base_name: Recorded as `base_model_name_or_path`, where PEFT would write this machine's folder; kept when empty.
    """
    # Left to itself PEFT asks the Hub for the base's vocabulary size, by the name that is recorded here.
    model.save_pretrained(str(directory), selected_adapters=[adapter], save_embedding_layers=False)
    nested = directory / adapter
    if nested.is_dir():
        for file in nested.iterdir():
            shutil.move(file, directory / file.name)
        nested.rmdir()
    (directory / "README.md").unlink(missing_ok=True)
    config_file = directory / "adapter_config.json"
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
    result = set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"), adapter_name=adapter)
    missing = [key for key in result.missing_keys if f".{adapter}." in key]
    if missing or result.unexpected_keys:
        raise IntegrityError(
            f"{directory}: does not hold the adapter {adapter!r}: {len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unknown"
        )
