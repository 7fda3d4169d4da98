"""Load the base model and its tokenizer: local paths first, no remote code unless told twice, no pickles ever."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefopt.errors import EnvironmentFault, InputError, IntegrityError
from prefopt.models.host_memory import return_large_blocks
from prefopt.recipe.schema import ModelSpec

# What Hugging Face's loaders raise of a folder that is none of theirs, torn, or wants to run code.
_UNREADABLE = (OSError, ValueError, SafetensorError)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """The device that stages of this process train on: the current CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype that `auto` means here: bfloat16 where the device computes in it, else float32.

    On a CPU `auto` is float32 also for models saved in half precision: training small models in half precision on a
    CPU is neither faster nor as exact.
    """
    if name != "auto":
        return DTYPES[name]
    # Devices without such units compute in it as well, slower than in float32, and count as able to by default.
    gains = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if gains else torch.float32


@dataclass(frozen=True)
class BaseLocation:
    """Where the base is read from, and the name that artefacts give it.

    Attributes:
        path: Local folder or Hub id.
        revision: Git revision on the Hub; ignored for folders.
        name: What `adapter_config.json` records: the Hub id, or a name without this machine's folders in it.
    """

    path: str
    revision: str
    name: str


def locate_base(spec: ModelSpec, stage_directories: Mapping[str, Path]) -> BaseLocation:
    """Find the base: the `model/` folder of a pretrain stage, a local folder, or a Hub id."""
    if spec.model_name_or_path in stage_directories:
        path = stage_directories[spec.model_name_or_path] / "model"
        return BaseLocation(str(path), "main", spec.model_name_or_path)
    if os.path.isdir(spec.model_name_or_path):
        return BaseLocation(spec.model_name_or_path, "main", Path(spec.model_name_or_path).name)
    return BaseLocation(spec.model_name_or_path, spec.model_revision, spec.model_name_or_path)


def load_tokenizer(base: BaseLocation, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer and make sure that it can pad.

    Padding is always masked by length, never by id, so a tokenizer whose padding token equals another token is fine.

    Raises:
        EnvironmentFault: When the folder or the Hub does not have it.
        InputError: When it has no end-of-sequence token, without which no completion can end.
    """
    tokenizer = _tokenizer(base, trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {base.name} has no end-of-sequence token",
            "set eos_token in its tokenizer_config.json: without it no completion can end",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_config(base: BaseLocation, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load the model's configuration.

    Raises:
        EnvironmentFault: When the folder or the Hub does not have it.
        InputError: When it runs code of its own that nobody has agreed to.
    """
    try:
        return AutoConfig.from_pretrained(base.path, revision=base.revision, trust_remote_code=trust_remote_code)
    except _UNREADABLE as error:
        raise _unreadable(base, "configuration", error) from error


def _tokenizer(base: BaseLocation, trust_remote_code: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(base.path, revision=base.revision, trust_remote_code=trust_remote_code)
    except _UNREADABLE as error:
        raise _unreadable(base, "tokenizer", error) from error


def load_classifier(
    base: BaseLocation, dtype: str, output: str | int | None = None, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classification model and its tokenizer, frozen, on this process's device.

    Only safetensors are read, as of any model.

    Args:
        base: Where it is.
        dtype: As `ModelSpec.dtype` says it.
        output: The one that counts, of several.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        EnvironmentFault: When the folder or the Hub does not have it.
        InputError: When it is not clear which output counts, or there is no trained head.
        IntegrityError: When the weights are pickles.
    """
    if os.path.isdir(base.path):
        _refuse_pickles(Path(base.path))
    where: dict[str, Any] = {"revision": base.revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(base.path, **where)
        number_of_output(config, output, base.name)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            base.path, config=config, dtype=resolve_dtype(dtype), use_safetensors=True, output_loading_info=True,
            **where,
        )  # fmt: skip
    except _UNREADABLE as error:
        raise _unreadable(base, "model", error) from error
    missing = ", ".join(sorted(report["missing_keys"]))
    if missing:
        raise InputError(
            f"{base.name} lacks weights of a sequence classification model: {missing}",
            "name a model that was trained as a reward model, or as a classifier",
        )
    model.requires_grad_(False)
    tokenizer: PreTrainedTokenizerBase = _tokenizer(base, trust_remote_code)
    return model.eval().to(device()), tokenizer


def number_of_output(config: PretrainedConfig, output: str | int | None, name: str) -> int:
    """Which output of a sequence classification model counts.

    Args:
        config: Of the model.
        output: Its name or number; None where there is one alone.
        name: What messages call the model.

    Raises:
        InputError: When there are several and none is named, or the one that is named is not there.
    """
    if output is None and config.num_labels == 1:
        return 0
    names = [str((config.id2label or {}).get(number, number)) for number in range(config.num_labels)]
    if output is None:
        raise InputError(
            f"{name} gives {len(names)} numbers for a text, and one can count: {', '.join(names):.200}",
            f"write `output: {names[-1]}`, say; is it a language model, name a model that was trained to score",
        )
    if isinstance(output, int) and 0 <= output < len(names):
        return output
    if output in names:
        return names.index(str(output))
    raise InputError(f"{name} has no output {output!r}", f"its outputs are {', '.join(names):.200}")


def load_base(base: BaseLocation, spec: ModelSpec, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load the causal language model, frozen, on this process's device.

    Only safetensors are read: a pickled checkpoint can run any code while it loads.

    Raises:
        EnvironmentFault: When the folder or the Hub does not have it, or 4-bit loading has no CUDA device.
        IntegrityError: When the weights are pickles.
    """
    kwargs: dict[str, Any] = {}
    if spec.load_in_4bit:
        kwargs["quantization_config"] = _four_bit(resolve_dtype(spec.dtype))
        kwargs["device_map"] = {"": device()}
    if os.path.isdir(base.path):
        _refuse_pickles(Path(base.path))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.path,
            revision=base.revision,
            dtype=resolve_dtype(spec.dtype),
            attn_implementation=spec.attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **kwargs,
        )
    except _UNREADABLE as error:
        raise _unreadable(base, "model", error) from error
    except ImportError as error:  # of flash_attention_2, or of what a model's own code needs
        flash = spec.attn_implementation.startswith("flash")
        remedy = "install flash-attn, or write `attn_implementation: sdpa` under 'model'" if flash else "install it"
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EnvironmentFault(f"{base.name}: {said}", remedy) from error
    model.requires_grad_(False)
    # Dropout in the base would make the policy's log-probabilities differ from the reference's before any step.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if device().type == "cpu":
        return_large_blocks(model.config.get_text_config().hidden_size)
    return model if spec.load_in_4bit else model.to(device())


def _four_bit(compute_dtype: torch.dtype) -> Any:
    if not torch.cuda.is_available():
        raise EnvironmentFault("load_in_4bit needs a CUDA device", "remove `load_in_4bit: true` to run on this machine")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise IntegrityError(
            f"{folder}: the weights are pickled ({', '.join(pickled)}), which can run any code while loading",
            "convert them to safetensors where you trust them",
        )


def _unreadable(base: BaseLocation, what: str, error: Exception) -> Exception:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, SafetensorError):
        return IntegrityError(f"{base.path}: the weights are damaged: {first}", "download or copy the model again")
    if "trust_remote_code" in str(error):
        return InputError(
            f"{base.path} runs code of its own to load its {what}",
            "if you have read that code: write `trust_remote_code: true` under `model` and pass --trust-remote-code",
        )
    remedy = (
        "is the folder a Hugging Face model?"
        if os.path.isdir(base.path)
        else "check the name, `hf auth login` for gated models, or download it first and give its folder"
    )
    return EnvironmentFault(f"cannot read the {what} of {base.path}: {first}", remedy)
