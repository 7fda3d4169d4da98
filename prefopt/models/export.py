"""A policy or a reward model as PEFT or transformers alone would open it, and the proof that it computes the same.

A merged model has the adapter in its weights. Where the base was loaded in 4 bit, the adapter was trained against what
those bits stand for and not against the weights they were made from: it is merged into the former.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from prefopt.errors import InputError, IntegrityError
from prefopt.models.heads import RewardModel

# The largest difference of a logit, as a share of the largest logit. Merging rounds every weight once to the type that
# is saved, and a base in 4 bit computes in it, too.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

Rows = Sequence[Sequence[int]]


@torch.no_grad()
def logits_of(model: nn.Module, rows: Rows) -> list[Tensor]:
    """Logits of each row [T] by itself, without padding: [T, V] of a language model, [1] of a model that scores."""
    device = next(model.parameters()).device
    found = []
    model.eval()
    for row in rows:
        ids = torch.tensor([row], device=device)
        mask = torch.ones_like(ids)
        if isinstance(model, RewardModel):
            found.append(model(ids, mask).float().cpu())
        else:
            found.append(model(input_ids=ids, attention_mask=mask).logits[0].float().cpu())
    return found


def largest_gap(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference between logits, as a share of the largest that is expected."""
    largest = max(float(tensor.abs().max()) for tensor in expected)
    pairs = zip(expected, found, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs) / max(largest, torch.finfo(torch.float32).tiny)


def require_equal(expected: Sequence[Tensor], model: nn.Module, rows: Rows, what: Path) -> float:
    """Prove that a model gives the logits that are expected.

    Args:
        expected: Of each row.
        model: Opened from what was written.
        rows: Token ids.
        what: Where it was written, for the message.

    Returns:
        The largest difference, as a share of the largest logit.

    Raises:
        IntegrityError: When they differ by more than `TOLERANCE`, or are not finite.
    """
    dtype = next(model.parameters()).dtype
    gap = largest_gap(expected, logits_of(model, rows))
    if not gap <= TOLERANCE.get(dtype, TOLERANCE[torch.float32]):
        raise IntegrityError(
            f"{what}: what was written gives other logits, by {gap:.1e} of the largest, and is not kept",
            "this is a fault of prefopt, or of the installed transformers or peft: `prefopt run` was tested with "
            "the versions in constraints.txt",
        )
    return gap


def is_quantised(base: PreTrainedModel) -> bool:
    """Whether weights are kept in fewer bits than they compute in."""
    return bool(getattr(base, "is_quantized", False))


def dequantised(base: PreTrainedModel) -> PreTrainedModel:
    """A base whose weights are what its bits stand for; one that is not quantised is given back as it is.

    Args:
        base: Without adapters; a quantised one is changed in place.
    """
    if not is_quantised(base):
        return base
    base.dequantize()
    base.requires_grad_(False)
    return base


def sequence_classifier(base: PreTrainedModel, pad_token_id: int | None) -> PreTrainedModel:
    """The model of one score that transformers makes of a language model, on the same weights; its head is new.

    Args:
        base: A causal language model, without adapters.
        pad_token_id: What the classifier takes for padding: it reads the score at the last other token. None: it takes
            one row at a time.

    Raises:
        InputError: When transformers has no such model for this architecture.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = config.pad_token_id = pad_token_id
    decoder = base.base_model_prefix
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise InputError(
            f"transformers has no sequence classification for {base.config.model_type}",
            "export without --merge, and use prefopt's own RewardModel",
        )
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    if classifier.base_model_prefix != decoder or not hasattr(classifier, "score"):
        raise InputError(f"{type(classifier).__name__} is not {type(base).__name__} with a head named score")
    setattr(classifier, decoder, getattr(base, decoder))
    like = next(base.parameters())
    head = nn.Linear(classifier.score.in_features, 1, bias=False, dtype=base.dtype, device=like.device)
    classifier.score = head.requires_grad_(False)
    return cast(PreTrainedModel, classifier.eval())


def with_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with the adapter in a folder, as a user of PEFT opens it."""
    return PeftModel.from_pretrained(base, str(folder)).eval()


def merged(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with the adapter in a folder as part of its weights.

    Args:
        base: Not quantised; its weights are changed.
        folder: Of the adapter; a head that it has becomes the model's.

    Raises:
        IntegrityError: When a merged weight is not finite.
    """
    try:
        model = with_adapter(base, folder).merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise IntegrityError(f"{folder}: {error}") from error
    return cast(PreTrainedModel, model)


def reopened(model: PreTrainedModel, folder: Path, **options: Any) -> PreTrainedModel:
    """What `model` was saved as, opened by transformers alone, on the same device and in the same type."""
    scores = type(model).__name__.endswith("ForSequenceClassification")
    opener: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    found = opener.from_pretrained(str(folder), dtype=model.dtype, use_safetensors=True, **options)
    return cast(PreTrainedModel, found.to(model.device).eval())
