"""What is exported is opened by PEFT and transformers alone and computes the same; what does not is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from prefopt.errors import InputError, IntegrityError
from prefopt.models.export import (
    TOLERANCE,
    dequantised,
    largest_gap,
    logits_of,
    merged,
    reopened,
    require_equal,
    sequence_classifier,
    with_adapter,
)
from prefopt.models.heads import RewardModel, new_reward_model, save_reward
from prefopt.models.roles import POLICY, REWARD, policy_on, save_adapter
from prefopt.recipe.schema import LoraSpec
from tests.tiny import tiny_llama

ROWS = [[1, 5, 9, 33, 2], [4, 7, 8, 100, 200, 33, 7, 2]]
PAD = 0
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def moved(model: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return model


def policy(folder: Path, base: PreTrainedModel) -> PeftModel:
    model = moved(policy_on(base, LoraSpec(lora_r=4), None))
    save_adapter(model, POLICY, folder, "tiny")
    return model


def reward(folder: Path, base: PreTrainedModel) -> RewardModel:
    model = new_reward_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), None)
    moved(model.peft)
    save_reward(model.peft, REWARD, model.score, folder, "tiny")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_policy_is_opened_by_transformers_and_gives_the_same_logits(tmp_path: Path, dtype) -> None:
    model = policy(tmp_path / "adapter", tiny_llama().to(dtype))
    expected = logits_of(model, ROWS)
    whole = merged(model.unload(), tmp_path / "adapter")
    whole.save_pretrained(tmp_path / "merged")
    gap = require_equal(expected, reopened(whole, tmp_path / "merged"), ROWS, tmp_path)
    assert gap < (1e-5 if dtype is torch.float32 else TOLERANCE[dtype])
    assert largest_gap(expected, logits_of(tiny_llama().to(dtype), ROWS)) > 5 * gap, "the adapter does something"


def test_a_reward_model_is_a_sequence_classifier_with_its_head(tmp_path: Path) -> None:
    model = reward(tmp_path / "adapter", tiny_llama())
    expected = logits_of(model, ROWS)
    base = model.peft.unload()
    beside = with_adapter(sequence_classifier(base, PAD), tmp_path / "adapter")
    assert require_equal(expected, beside, ROWS, tmp_path) < 1e-5
    whole = merged(sequence_classifier(tiny_llama(), PAD), tmp_path / "adapter")
    whole.save_pretrained(tmp_path / "merged")
    again = reopened(whole, tmp_path / "merged")
    assert type(again).__name__ == "LlamaForSequenceClassification" and again.config.num_labels == 1
    assert require_equal(expected, again, ROWS, tmp_path) < 1e-5
    assert torch.equal(again.score.weight, model.score.weight), "the head survives"
    # In one batch, padded: the classifier finds the last token by the padding's id.
    padded = torch.tensor([ROWS[0] + [PAD] * 3, ROWS[1]])
    scores = again(input_ids=padded, attention_mask=(padded != PAD).long()).logits
    assert torch.allclose(scores, torch.stack(expected), atol=1e-5)


def test_a_classifier_that_would_take_the_end_token_for_padding_takes_one_row_at_a_time(tmp_path: Path) -> None:
    model = reward(tmp_path / "adapter", tiny_llama())
    expected = logits_of(model, ROWS)
    wrong = with_adapter(sequence_classifier(tiny_llama(), 2), tmp_path / "adapter")
    with pytest.raises(IntegrityError, match="gives other logits"):
        require_equal(expected, wrong, ROWS, tmp_path)
    right = with_adapter(sequence_classifier(tiny_llama(), None), tmp_path / "adapter")
    require_equal(expected, right, ROWS, tmp_path)
    with pytest.raises(ValueError, match="batch sizes > 1"):
        right(input_ids=torch.tensor([ROWS[0], ROWS[0]]))


@pytest.mark.parametrize("damage", ["another weight", "not a number"])
def test_what_computes_something_else_is_refused(tmp_path: Path, damage: str) -> None:
    model = policy(tmp_path / "adapter", tiny_llama())
    expected = logits_of(model, ROWS)
    wrong = model.unload()
    with torch.no_grad():
        wrong.model.norm.weight[0] += 0.1 if damage == "another weight" else float("nan")
    with pytest.raises(IntegrityError, match="gives other logits"):
        require_equal(expected, with_adapter(wrong, tmp_path / "adapter"), ROWS, tmp_path)


def test_an_architecture_without_a_classifier_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification

    monkeypatch.setattr(AutoModelForSequenceClassification, "_model_mapping", {})
    with pytest.raises(InputError, match="no sequence classification for llama"):
        sequence_classifier(tiny_llama(), PAD)


def four_bit(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """On whatever device there is: bitsandbytes computes in 4 bit on a CPU, too."""
    if not folder.is_dir():
        tiny_llama().save_pretrained(folder)
    options = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=options, device_map={"": device}, dtype=dtype
    )
    return base.requires_grad_(False)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["policy", "reward"])
# What a library warns of in a user's process is not this test's concern.
@pytest.mark.filterwarnings("ignore")
def test_on_a_4_bit_base_the_merge_is_into_what_the_bits_stand_for(tmp_path: Path, kind: str, dtype) -> None:
    base = four_bit(tmp_path / "base", dtype)
    model = (policy if kind == "policy" else reward)(tmp_path / "adapter", base)
    expected = logits_of(model, ROWS)
    base = (model if isinstance(model, PeftModel) else model.peft).unload()
    assert largest_gap(logits_of(four_bit(tmp_path / "base", dtype), ROWS), logits_of(dequantised(base), ROWS)) < (
        1e-5 if dtype is torch.float32 else 2e-2
    )
    scores = kind == "reward"
    whole = merged(sequence_classifier(base, PAD) if scores else base, tmp_path / "adapter")
    whole.save_pretrained(tmp_path / "merged")
    again = reopened(whole, tmp_path / "merged")
    assert getattr(again.config, "quantization_config", None) is None and again.dtype is dtype
    gap = require_equal(expected, again, ROWS, tmp_path)
    assert gap < (1e-5 if dtype is torch.float32 else TOLERANCE[dtype])
    # Into the weights that the bits were made from it would be another model.
    original = tiny_llama().to(next(again.parameters()).device, dtype)
    wrong = merged(sequence_classifier(original, PAD) if scores else original, tmp_path / "adapter")
    wrong_gap = largest_gap(expected, logits_of(wrong, ROWS))
    print(f"4-bit {kind} {dtype}: gap {gap:.2e}, merged into the original weights {wrong_gap:.2e}")
    assert wrong_gap > TOLERANCE[dtype]
