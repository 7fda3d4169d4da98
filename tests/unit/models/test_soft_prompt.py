"""A soft prompt is read before every prompt, whoever samples or measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from prefopt.errors import InputError, IntegrityError
from prefopt.evaluation.policy import PolicyBench
from prefopt.models.distill_policy import DistillPolicy
from prefopt.models.generate import SamplingOptions
from prefopt.models.roles import POLICY, save_adapter
from prefopt.models.soft_prompt import SoftPrompt, WithSoftPrompt, read_soft_prompt, sample_from, soft_prompt_on
from tests.tiny import random_rows, tiny_llama, tiny_tokenizer
from tests.unit.trainers.four import adapted

PROMPTS = [row["prompt_ids"] for row in random_rows(5)]
ANSWERS = [row["chosen_ids"] for row in random_rows(5)]


def trained() -> PeftModel:
    torch.manual_seed(1)
    peft = soft_prompt_on(tiny_llama(), tiny_tokenizer(), 3)
    with torch.no_grad():
        peft.prompt_encoder[POLICY].embedding.weight.add_(0.3 * torch.randn(3, peft.config.hidden_size))
    return peft.eval()


def by_hand(model: torch.nn.Module, vectors: Tensor, prompt: list[int], answer: list[int]) -> float:
    """Log-probability of an answer, from the embeddings of one row."""
    tokens = torch.tensor([[*prompt, *answer]])
    embedded = torch.cat([vectors[None], model.get_input_embeddings()(tokens)], 1)
    logps = model(inputs_embeds=embedded).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return float(logps.gather(1, torch.tensor(answer)[:, None]).sum())


def test_vectors_start_as_tokens() -> None:
    tokenizer, table = tiny_tokenizer(), tiny_llama().get_input_embeddings().weight
    ids = tokenizer("the lamp is red", add_special_tokens=False)["input_ids"]
    for count in (2, len(ids), len(ids) + 3):
        vectors = soft_prompt_on(tiny_llama(), tokenizer, count, "the lamp is red").get_prompt(1)[0]
        assert torch.equal(vectors, table[torch.tensor((ids * 3)[:count])])
    drawn = soft_prompt_on(tiny_llama(), tokenizer, 6).get_prompt(1)[0]
    assert all((table == vector).all(1).any() for vector in drawn)


def test_a_text_without_tokens_is_refused() -> None:
    def stripped(text: str, **options: bool) -> dict[str, list[int]]:
        return {"input_ids": tiny_tokenizer()(text.strip(), **options)["input_ids"]}

    with pytest.raises(InputError, match="has no tokens"):
        soft_prompt_on(tiny_llama(), stripped, 2, " ")  # type: ignore[arg-type]


def test_a_model_with_a_state_is_refused() -> None:
    model = tiny_llama()
    type(model)._is_stateful = True
    try:
        with pytest.raises(InputError, match="keeps a state"):
            soft_prompt_on(model, tiny_tokenizer(), 2)
    finally:
        del type(model)._is_stateful


def test_a_bench_measures_what_the_trained_policy_says(tmp_path: Path) -> None:
    peft = trained()
    save_adapter(peft, POLICY, tmp_path, "base")
    assert "task_type" in (tmp_path / "adapter_config.json").read_text()
    vectors = read_soft_prompt(tmp_path)
    assert torch.equal(vectors, peft.get_prompt(1)[0])
    bench = PolicyBench(tiny_llama().eval(), tiny_tokenizer(), 2, {"soft": SoftPrompt(None, vectors)})
    greedy = SamplingOptions(6, temperature=0.0, batch_size=2)
    expected = sample_from(DistillPolicy(peft), tiny_tokenizer(), PROMPTS, greedy, None, None)
    assert bench.sample("soft", PROMPTS, greedy) == expected != bench.sample(None, PROMPTS, greedy)
    logps = [by_hand(bench.model, vectors, *row) for row in zip(PROMPTS, ANSWERS, strict=True)]
    assert bench.completion_logps("soft", PROMPTS, ANSWERS) == pytest.approx(logps, abs=1e-4)
    assert min(bench.along("soft", None, PROMPTS, expected).kl) > 1e-4


def test_vectors_stand_before_the_adapter_they_were_trained_with(tmp_path: Path) -> None:
    below = adapted(tiny_llama(), POLICY)
    with torch.no_grad():
        for name, parameter in below.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    vectors = 0.3 * torch.randn(4, below.config.hidden_size)
    bench = PolicyBench(below.eval(), tiny_tokenizer(), 3, {"soft": SoftPrompt(POLICY, vectors)})
    found = bench.completion_logps("soft", PROMPTS, ANSWERS)
    merged = below.merge_and_unload().eval()
    expected = [by_hand(merged, vectors, *row) for row in zip(PROMPTS, ANSWERS, strict=True)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_cache_changes_nothing() -> None:
    vectors = 0.3 * torch.randn(4, tiny_llama().config.hidden_size)
    bench = PolicyBench(tiny_llama().eval(), tiny_tokenizer(), 5, {"soft": SoftPrompt(None, vectors)})
    greedy = bench.sample("soft", PROMPTS, SamplingOptions(5, temperature=0.0))
    model = WithSoftPrompt(bench.model, vectors)
    for prompt, answer in zip(PROMPTS, greedy, strict=True):
        tokens = torch.tensor([[*prompt, *answer.ids]])
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        assert logits.shape[1] == tokens.shape[1]
        assert tuple(logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()) == answer.ids


def test_an_adapter_is_no_soft_prompt(tmp_path: Path) -> None:
    save_adapter(adapted(tiny_llama(), POLICY), POLICY, tmp_path, "base")
    with pytest.raises(IntegrityError, match="holds no soft prompt"):
        read_soft_prompt(tmp_path)
