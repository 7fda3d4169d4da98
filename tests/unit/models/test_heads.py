"""Scores: read at the last real token, the same in every batch, and the same after saving."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt.errors import IntegrityError
from prefopt.models.heads import (
    RewardModel,
    ScoreHead,
    hang_reward,
    hidden_states,
    last_token,
    new_reward_model,
    save_reward,
)
from prefopt.models.roles import REWARD
from tests.tiny import tiny_llama, tiny_policy


def reward_model(seed: int = 0) -> RewardModel:
    torch.manual_seed(seed)
    model = new_reward_model(tiny_llama(), LoraConfig(r=6, lora_alpha=8, target_modules="all-linear"), None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def rows(count: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    # The end token, 2, is also what fills: it must not be taken for the end of a row, nor the end for filling.
    return [
        torch.cat([torch.randint(6, 300, (3 + 2 * n,), generator=generator), torch.tensor([2])]) for n in range(count)
    ]


def padded(row: torch.Tensor, left: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    fill = torch.full((left,), 2), torch.full((right,), 2)
    mask = torch.cat([torch.zeros(left), torch.ones(len(row)), torch.zeros(right)]).long()
    return torch.cat([fill[0], row, fill[1]])[None], mask[None]


@torch.no_grad()
def test_a_score_does_not_depend_on_neighbours_nor_on_the_side_or_token_of_padding() -> None:
    model = reward_model()
    alone = torch.cat([model(row[None], torch.ones(1, len(row)).long()) for row in rows()])
    width = max(len(row) for row in rows())
    for left in (True, False):
        parts = [padded(row, width - len(row) if left else 0, 0 if left else width - len(row)) for row in rows()]
        together = model(torch.cat([ids for ids, _ in parts]), torch.cat([mask for _, mask in parts]))
        assert torch.allclose(together, alone, atol=1e-5)
    ids, mask = padded(rows()[0], 3, 4)
    assert torch.allclose(model(ids, mask), alone[:1], atol=1e-5)
    assert alone.std() > 0.01


def test_the_last_token_is_found_by_the_mask() -> None:
    hidden = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert last_token(hidden, mask).flatten().tolist() == [3.0, 11.0]


@torch.no_grad()
def test_the_hidden_states_are_those_that_logits_come_from_with_the_active_adapter() -> None:
    model = tiny_policy()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    ids, mask = rows()[3][None], torch.ones(1, len(rows()[3])).long()
    logits = model.get_base_model().get_output_embeddings()(hidden_states(model, ids, mask))
    assert torch.allclose(logits, model(ids).logits, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(logits, model(ids).logits, atol=1e-3)


# gpt2 has absolute positions: with rotary ones a row that is moved by its padding scores the same anyway.
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt_neox", "gpt2"])
def test_other_architectures_apply_the_adapter_and_ignore_padding(architecture: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {} if architecture.startswith("gpt") else {"head_dim": 8, "num_key_value_heads": 2}
    tokens = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**sizes, **more, **tokens))
    lora = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2")
    model = new_reward_model(base.requires_grad_(False), lora, None).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    ids = rows()[2][None]
    mask = torch.ones_like(ids)
    hidden = hidden_states(model.peft, ids, mask)
    assert torch.allclose(hidden, model.peft(ids, output_hidden_states=True).hidden_states[-1], atol=1e-5)
    with model.peft.disable_adapter():
        assert not torch.allclose(hidden, hidden_states(model.peft, ids, mask), atol=1e-3)
    score = model(ids, mask)
    for sides in ((3, 0), (0, 3)):
        assert torch.allclose(model(*padded(rows()[2], *sides)), score, atol=1e-5)
    score.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None and parameter.grad.any() for parameter in trained)


@torch.no_grad()
def test_a_saved_model_scores_the_same_beside_other_adapters_which_stay_as_they_were(tmp_path: Path) -> None:
    model = reward_model()
    save_reward(model.peft, REWARD, model.score, tmp_path, "tiny")
    row = rows()[2][None]
    mask = torch.ones_like(row)
    expected = model(row, mask)
    policy = tiny_policy()  # another rank
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    said = policy(row).logits
    peft, head = hang_reward(policy, tmp_path, "judge")
    assert {name for name, parameter in peft.named_parameters() if parameter.requires_grad} == trained
    assert torch.equal(peft(row).logits, said)
    peft.set_adapter("judge", inference_mode=True)
    assert torch.allclose(RewardModel(peft, head)(row, mask), expected, atol=1e-6)
    alone, head = hang_reward(tiny_llama(), tmp_path, REWARD)
    assert torch.allclose(RewardModel(alone, head)(row, mask), expected, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in alone.parameters())


@torch.no_grad()
def test_other_programs_open_it_as_a_classifier_of_sequences(tmp_path: Path) -> None:
    model = reward_model()
    save_reward(model.peft, REWARD, model.score, tmp_path / "reward", "tiny")
    tiny_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    theirs = PeftModel.from_pretrained(base, tmp_path / "reward").eval()
    row = rows()[2][None]
    assert torch.allclose(theirs(row).logits.flatten(), model(row, torch.ones_like(row)), atol=1e-5)


def test_a_folder_without_a_head_is_no_reward_model(tmp_path: Path) -> None:
    model = reward_model()
    save_reward(model.peft, REWARD, model.score, tmp_path, "tiny")
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if "score" not in name}, file)
    with pytest.raises(IntegrityError, match="no reward model"):
        hang_reward(tiny_llama(), tmp_path, REWARD)
    save_file({name: tensor for name, tensor in weights.items() if "layers.0" not in name}, file)
    with pytest.raises(IntegrityError, match="missing"):
        hang_reward(tiny_llama(), tmp_path, REWARD)


def test_a_new_head_is_small_and_in_float32() -> None:
    torch.manual_seed(0)
    head = ScoreHead(4000)
    assert head.weight.dtype is torch.float32 and head.bias is None
    assert head.weight.std().item() == pytest.approx(4001**-0.5, rel=0.05)


def test_a_head_counts_in_float32_within_autocast() -> None:
    head, states = ScoreHead(8), torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        head.weight.mul_(100)
        with torch.autocast("cpu", torch.bfloat16):
            cast = head(states)
        assert cast.dtype is torch.float32 and torch.equal(cast, head(states))
