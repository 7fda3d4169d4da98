"""A restart samples nothing twice, and ends with the same answers as an uninterrupted collection."""

import dataclasses
from pathlib import Path

import pytest

from prefopt.feedback.sampling import Asked, sample_into
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.records import Message
from prefopt.store.ledger import Ledger
from tests.tiny import random_rows, tiny_llama, tiny_tokenizer

ASKED = [Asked((Message("user", f"prompt {n}"),), row["prompt_ids"]) for n, row in enumerate(random_rows(11))]
OPTIONS = SamplingOptions(max_new_tokens=6, batch_size=2, seed=3)


class Counted:
    """The real sampler, counting what it is asked for."""

    def __init__(self, stop_after: int = 99) -> None:
        self.model, self.tokenizer = tiny_llama(), tiny_tokenizer()
        self.rows: list[int] = []
        self.stop_after = stop_after

    def __call__(self, prompts, options: SamplingOptions) -> list[Sampled]:
        if len(self.rows) == self.stop_after:
            raise KeyboardInterrupt
        self.rows.append(len(prompts))
        return sample(self.model, self.tokenizer, prompts, options)


def collect(folder: Path, sampler: Counted, policy: str = "abc", options=OPTIONS, asked=ASKED):
    with Ledger(folder, "pairs") as ledger:
        return sample_into(ledger, "sft", policy, asked, 3, sampler, options)


def test_every_prompt_gets_its_answers_and_they_differ(tmp_path: Path) -> None:
    sampler = Counted()
    found = collect(tmp_path, sampler)
    assert [len(each) for each in found] == [3] * len(ASKED) and sum(sampler.rows) == 3 * len(ASKED)
    assert len({sample.completion for each in found for sample in each}) > len(ASKED)


def test_the_tokens_are_kept_that_were_sampled(tmp_path: Path) -> None:
    sampler = Counted()
    told = []

    def spy(prompts, options: SamplingOptions) -> list[Sampled]:
        found = sampler(prompts, options)
        told.extend((each.text, each.finished, len(each.ids), each.ids) for each in found)
        return found

    for _ in range(2):  # the second time from the ledger
        found = [sample for each in collect(tmp_path, spy) for sample in each]
        assert sorted(told) == sorted((each.completion, each.finished, each.tokens, each.ids) for each in found)


def test_where_a_stop_string_may_cut_the_text_it_stands_alone(tmp_path: Path) -> None:
    found = collect(tmp_path, Counted(), options=dataclasses.replace(OPTIONS, stop=("e",)))
    assert {sample.ids for each in found for sample in each} == {()}


def test_a_restart_goes_on_where_it_was_and_nobody_can_tell(tmp_path: Path) -> None:
    whole = collect(tmp_path / "whole", Counted())
    first = Counted(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "parts", first)
    second = Counted()
    assert collect(tmp_path / "parts", second) == whole
    assert sum(first.rows) + sum(second.rows) == 3 * len(ASKED) and first.rows
    third = Counted()
    assert collect(tmp_path / "parts", third) == whole and third.rows == []


def test_another_policy_or_other_options_are_sampled_anew(tmp_path: Path) -> None:
    first = collect(tmp_path, Counted())
    for more in ({"policy": "def"}, {"options": SamplingOptions(max_new_tokens=6, batch_size=2, seed=4)}):
        sampler = Counted()
        assert collect(tmp_path, sampler, **more) != first
        assert sum(sampler.rows) == 3 * len(ASKED)


def test_more_prompts_cost_what_is_new_at_most_by_a_chunk(tmp_path: Path) -> None:
    first = collect(tmp_path, Counted(), asked=ASKED[:8])
    sampler = Counted()
    more = collect(tmp_path, sampler)
    assert more[:8] == first  # what is in the ledger stays
    assert sum(sampler.rows) <= 3 * len(ASKED)
