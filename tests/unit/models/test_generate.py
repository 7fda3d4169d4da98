import contextlib

import torch

from prefopt.models import generate
from prefopt.models.draw import choose_tokens
from prefopt.models.generate import SamplingOptions, beam_search, end_token_ids, sample
from tests.tiny import VOCABULARY, random_rows, tiny_llama, tiny_policy, tiny_tokenizer

PROMPTS = [row["prompt_ids"] for row in random_rows(9)]


def test_samples_depend_on_the_seed_alone_and_keep_the_order() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    options = SamplingOptions(max_new_tokens=6, batch_size=4, seed=3)
    torch.manual_seed(0)
    first = sample(model, tokenizer, PROMPTS, options)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert sample(model, tokenizer, PROMPTS, options) == first
    assert torch.equal(state, torch.random.get_rng_state())  # sampling leaves the caller's random state alone
    assert sample(model, tokenizer, PROMPTS, SamplingOptions(6, batch_size=4, seed=4)) != first


def test_greedy_does_not_depend_on_neighbours_or_padding() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    together = sample(model, tokenizer, PROMPTS, SamplingOptions(6, temperature=0.0, batch_size=9))
    alone = sample(model, tokenizer, PROMPTS, SamplingOptions(6, temperature=0.0, batch_size=1))
    assert together == alone


def test_greedy_is_what_the_librarys_own_loop_gives(monkeypatch) -> None:
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    model.get_base_model().generation_config.eos_token_id = list(range(0, VOCABULARY, 8))
    options = SamplingOptions(24, temperature=0.0, batch_size=5)
    ours = sample(model, tokenizer, PROMPTS, options)
    monkeypatch.setattr(generate, "_keeps_a_plain_cache", lambda model: False)
    assert sample(model, tokenizer, PROMPTS, options) == ours
    assert len({len(answer.ids) for answer in ours}) > 1  # rows left the batch at different times


def test_sampling_leaves_every_weight_as_it_was_and_merging_changes_no_answer(monkeypatch) -> None:
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = SamplingOptions(24, temperature=0.0, batch_size=5)
    ours = sample(model, tokenizer, PROMPTS, options)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with model.disable_adapter():
        assert sample(model, tokenizer, PROMPTS, options) != ours
    monkeypatch.setattr(generate, "merged", lambda model: contextlib.nullcontext())
    assert sample(model, tokenizer, PROMPTS, options) == ours


def test_top_p_keeps_the_likeliest_tokens_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    drawn = choose_tokens(logits, SamplingOptions(top_p=0.75))
    assert set(drawn.tolist()) == {0, 1}
    assert abs((drawn == 0).float().mean().item() - 0.5 / 0.8) < 0.03


def test_sampled_frequencies_are_the_models_probabilities() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    drawn = sample(model, tokenizer, [PROMPTS[0]] * 4000, SamplingOptions(1, batch_size=2000))
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([s.ids[0] for s in drawn]), minlength=len(expected)) / 4000
    assert (counts - expected).abs().max() < 4 * (expected.max() * (1 - expected.max()) / 4000).sqrt() + 1e-3


def test_a_completion_ends_at_its_end_token() -> None:
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    ends = end_token_ids(model, tokenizer)
    samples = sample(model, tokenizer, PROMPTS * 60, SamplingOptions(40, temperature=1.0, batch_size=64))
    finished = [s for s in samples if s.finished]
    assert finished and len(finished) < len(samples)
    for s in samples:
        assert (s.ids[-1] in ends) == s.finished
        assert not set(s.ids[:-1]) & set(ends)
        assert s.finished or len(s.ids) == 40


def test_the_models_own_generation_defaults_do_not_change_the_samples() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = sample(model, tokenizer, PROMPTS, SamplingOptions(12, batch_size=9))
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.top_k = 3
    assert sample(model, tokenizer, PROMPTS, SamplingOptions(12, batch_size=9)) == expected
    assert model.generation_config.repetition_penalty == 1.5


def test_with_numbers_of_its_own_a_row_does_not_depend_on_its_neighbours(monkeypatch) -> None:
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    model.get_base_model().generation_config.eos_token_id = list(range(0, VOCABULARY, 8))
    uniforms = torch.rand(len(PROMPTS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = SamplingOptions(12, batch_size=9, top_p=0.9)
    together = sample(model, tokenizer, PROMPTS, options, uniforms=uniforms)
    assert (
        sample(model, tokenizer, PROMPTS, SamplingOptions(12, batch_size=2, top_p=0.9), uniforms=uniforms) == together
    )
    assert sample(model, tokenizer, PROMPTS[3:4], options, uniforms=uniforms[3:4]) == together[3:4]
    assert sample(model, tokenizer, PROMPTS, options, uniforms=uniforms.flip(0)) != together
    monkeypatch.setattr(generate, "_keeps_a_plain_cache", lambda model: False)
    assert sample(model, tokenizer, PROMPTS, options, uniforms=uniforms) == together


def test_a_uniform_number_draws_from_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0])
    logits = probabilities.log().expand(4, 5)
    ends = torch.tensor([0.0, 0.0999, 0.1001, 1 - 1e-12], dtype=torch.float64)
    assert choose_tokens(logits, SamplingOptions(), ends).tolist() == [0, 0, 2, 3]
    spread = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = choose_tokens(probabilities.log().expand(1000, 5), SamplingOptions(), spread)
    assert torch.bincount(drawn, minlength=5).tolist() == [100, 0, 600, 300, 0]


def test_a_search_with_beams_finds_what_is_at_least_as_likely() -> None:
    model, tokenizer = tiny_llama().eval(), tiny_tokenizer()
    prompts = [row["prompt_ids"] for row in random_rows(5)]
    options = SamplingOptions(max_new_tokens=5, temperature=0.0, batch_size=2)

    def total(prompt, ids):
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())

    greedy = sample(model, tokenizer, prompts, options)
    assert [each.ids for each in beam_search(model, tokenizer, prompts, options, 1)] == [each.ids for each in greedy]
    found = beam_search(model, tokenizer, prompts, options, 4)
    gains = [total(p, each.ids) - total(p, one.ids) for p, each, one in zip(prompts, found, greedy, strict=True)
             if len(each.ids) == len(one.ids)]  # fmt: skip
    assert min(gains) > -1e-4 and max(gains) > 1e-3
