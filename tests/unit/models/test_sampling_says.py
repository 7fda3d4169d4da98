"""What sampling says of its tokens is what a forward pass says, and strings end completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefopt.models import generate
from prefopt.models.generate import Sampled, SamplingOptions, sample
from tests.tiny import VOCABULARY, random_rows, tiny_llama, tiny_policy, tiny_tokenizer

PROMPTS = [row["prompt_ids"] for row in random_rows(9)]
NUMBERS = torch.rand(len(PROMPTS), 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["own loop", "generate"])
def path(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "generate":
        monkeypatch.setattr(generate, "_keeps_a_plain_cache", lambda model: False)
    return request.param


def trained_policy():
    model = tiny_policy()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


# -- log-probabilities and entropies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_logps_and_entropies_are_those_of_a_full_forward(path: str, temperature: float) -> None:
    model, tokenizer = trained_policy(), tiny_tokenizer()
    # Many end tokens, so that rows leave the batch at different times.
    model.get_base_model().generation_config.eos_token_id = list(range(0, VOCABULARY, 8))
    options = SamplingOptions(24, temperature=temperature, batch_size=5, say=True)
    samples = sample(model, tokenizer, PROMPTS, options, uniforms=NUMBERS)
    assert len({len(each.ids) for each in samples}) > 3
    for prompt, each in zip(PROMPTS, samples, strict=True):
        ids = torch.tensor([[*prompt, *each.ids]])
        with torch.no_grad():
            logps = (model(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        said = logps.gather(1, torch.tensor(each.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(each.logps), said, atol=1e-5)
        assert torch.allclose(torch.tensor(each.entropies), -(logps.exp() * logps).sum(1), atol=1e-5)
    quiet = SamplingOptions(24, temperature=temperature, batch_size=5)
    unsaid = sample(model, tokenizer, PROMPTS, quiet, uniforms=NUMBERS)
    assert [each.ids for each in unsaid] == [each.ids for each in samples]
    assert all(each.logps == each.entropies == () for each in unsaid)


def test_where_it_may_not_end_the_policys_own_distribution_is_said(path: str) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ends = list(range(0, VOCABULARY, 2))
    model.generation_config.eos_token_id = ends
    options = SamplingOptions(6, min_new_tokens=4, batch_size=9, say=True)
    samples = sample(model, tokenizer, PROMPTS, options, uniforms=NUMBERS)
    assert {len(each.ids) for each in samples} == {5, 6}
    for prompt, each in zip(PROMPTS, samples, strict=True):
        assert not set(each.ids[:4]) & set(ends)
        with torch.no_grad():
            logps = model(torch.tensor([[*prompt, *each.ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert torch.allclose(torch.tensor(each.logps), logps[range(len(each.ids)), list(each.ids)], atol=1e-5)
        assert torch.allclose(torch.tensor(each.entropies), -(logps.exp() * logps).sum(1), atol=1e-5)


# -- stop strings ------------------------------------------------------------------------------------------------------


def scripted(
    tokenizer, texts: list[str], prompts: list[list[int]]
) -> tuple[torch.nn.Module, torch.Tensor, list[list[int]]]:
    """A model, and random numbers that make it write these texts."""
    model = tiny_llama()
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    numbers = torch.full((len(texts), max(map(len, wanted))), 0.5, dtype=torch.float64)
    for row, (prompt, ids) in enumerate(zip(prompts, wanted, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        reached = logits.softmax(-1).double().cumsum(-1)
        for place, token in enumerate(ids):
            below = float(reached[place, token - 1]) if token else 0.0
            numbers[row, place] = (below + float(reached[place, token])) / 2 / float(reached[place, -1])
    return model, numbers, wanted


def written(
    texts: list[str], prompts: list[list[int]] | None = None, **options: Any
) -> tuple[list[Sampled], list[list[int]]]:
    """The samples and the tokens that they were to begin with."""
    tokenizer = tiny_tokenizer()
    prompts = prompts or PROMPTS[: len(texts)]
    model, numbers, wanted = scripted(tokenizer, texts, prompts)
    chosen = SamplingOptions(numbers.shape[1], batch_size=8, say=True, **options)
    return sample(model, tokenizer, prompts, chosen, uniforms=numbers), wanted


TEXTS = ["the lamp is red", "nine euro, the chair", "red chair red lamp", "euro costs"]


def test_scripted_texts_are_written(path: str) -> None:
    samples, wanted = written(TEXTS)
    assert [list(each.ids[: len(ids)]) for each, ids in zip(samples, wanted, strict=True)] == wanted


@pytest.mark.parametrize("stop", [(" chair",), ("chair", "lamp"), ("o, t",), ("ed c",), ("d",)])
def test_a_row_ends_with_the_token_that_completes_a_string_and_its_neighbours_go_on(path: str, stop) -> None:
    tokenizer = tiny_tokenizer()
    plain, _ = written(TEXTS)
    stopped, _ = written(TEXTS, stop=stop)
    ended = 0
    for before, after in zip(plain, stopped, strict=True):
        heard = [tokenizer.decode(before.ids[:count], skip_special_tokens=True) for count in range(len(before.ids) + 1)]
        first = next((n for n, text in enumerate(heard) if any(string in text for string in stop)), None)
        if first is None:
            assert (after.ids, after.text, after.finished) == (before.ids, before.text, before.finished)
            continue
        ended += 1
        assert after.finished
        assert after.ids == before.ids[:first]
        assert after.text == heard[first][: min(heard[first].index(s) for s in stop if s in heard[first])]
        assert len(after.logps) == len(after.entropies) == first
        assert after.logps == pytest.approx(before.logps[:first], abs=1e-5)
    assert 0 < ended


def test_some_string_spans_tokens() -> None:
    """So that the test above does test it."""
    tokenizer = tiny_tokenizer()
    tokens = [tokenizer.decode([token]) for text in TEXTS for token in tokenizer(text)["input_ids"]]
    assert not any("o, t" in token for token in tokens) and any("o, t" in text for text in TEXTS)


def test_a_string_of_the_prompt_ends_nothing(path: str) -> None:
    tokenizer = tiny_tokenizer()
    # The prompt has the string, and ends with its first half.
    prompts = [tokenizer("the chair costs the ch")["input_ids"]] * 2
    stopped, _ = written(["air is red", "lamp costs nine"], prompts, stop=("chair", "costs"))
    assert stopped[0].text.startswith("air is red") and "chair" not in stopped[0].text
    assert stopped[1].text == "lamp " and stopped[1].finished


def test_both_ways_of_completing_agree_on_random_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = trained_policy(), tiny_tokenizer()
    options = SamplingOptions(24, batch_size=4, stop=("e", "th", " r"), say=True)
    ours = sample(model, tokenizer, PROMPTS, options, uniforms=NUMBERS)
    monkeypatch.setattr(generate, "_keeps_a_plain_cache", lambda model: False)
    theirs = sample(model, tokenizer, PROMPTS, options, uniforms=NUMBERS)
    assert [(each.ids, each.text, each.finished) for each in ours] == [(e.ids, e.text, e.finished) for e in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-5)
    assert 0 < sum(each.finished for each in ours)
    assert not any(string in each.text for each in ours for string in options.stop)
