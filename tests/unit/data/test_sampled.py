"""A policy learns from the tokens that were sampled: of its own completions the ids are kept, whatever their text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.control import control_tokens
from prefopt.data.load import load_demonstrations, load_unpaired
from prefopt.data.pair_encoder import PairEncoder
from prefopt.data.sampled import AsSampled, sampled_column, text_key
from prefopt.data.templates import BUILT_IN, Encoder, ensure_chat_template
from prefopt.errors import DataError
from prefopt.models.generate import _cut
from prefopt.recipe.schema import DataSpec
from prefopt.records import Message, Prompt, SampledTokens, conversation
from tests.tiny import tiny_tokenizer
from tests.unit.data.test_prepare import at_once, check
from tests.unit.data.test_templates import ask, byte_level, sentence_piece

NAMES = ("byte level", "trained", "stories260k-hf", "babyllama105-hf")
PROMPTS = (
    ask("Once upon a time, there was a little girl"),
    ask("what does it cost?", "nine euro", "and the lamp?", system="Be brief."),
    ask("hi <|im_end|> there"),
)


def tokenizer_of(name: str, template: str, request: pytest.FixtureRequest) -> Any:
    if name.endswith("-hf"):
        found = sentence_piece(request.getfixturevalue("shared_models"), name)
    else:
        found = byte_level() if name == "byte level" else tiny_tokenizer()
    ensure_chat_template(found, template)
    return found


def sampled_rows(tokenizer: Any, count: int = 60) -> list[dict[str, Any]]:
    """Pairs of random tokens, some with an end token and some cut, as a collect stage writes them."""
    rng, own, eos = random.Random(3), AsSampled(tokenizer), tokenizer.eos_token_id
    control = {eos, *tokenizer.convert_tokens_to_ids(control_tokens(tokenizer))}
    rows = []
    for number in range(count):
        prompt = PROMPTS[number % len(PROMPTS)]
        row: dict[str, Any] = {
            "prompt": conversation((*prompt[:-1], Message("user", f"{prompt[-1].content} {number}")))
        }
        asked: Prompt = tuple(Message(each["role"], each["content"]) for each in row["prompt"])
        for side in ("chosen", "rejected"):
            said = ""
            while not said.strip() or "\0" in said or said.strip() == row.get("chosen", "").strip():
                ids = [each for each in rng.choices(range(len(tokenizer)), k=12) if each not in control]
                answer = _cut([*ids, eos] if rng.random() < 0.5 else ids, [], [eos], tokenizer, ())
                said = answer.text
            how = SampledTokens(answer.finished, text_key(said), answer.ids, own.context(asked))
            row |= {side: said, f"sampled_{side}": sampled_column(how)}
        rows.append(row)
    return rows


def prepared(rows: list[dict[str, Any]], tokenizer: Any, folder: Path, *, own: bool = True) -> list[dict[str, Any]]:
    """Rows as a stage trains on them, in both ways of encoding."""
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"own": DataSpec(path=str(folder / "pairs.jsonl"), format="preference", eval_fraction=0.0)}
    limits = (512, "trim_prompt", AsSampled(tokenizer)) if own else (512,)
    train, *_ = check(("own",), data, folder / "rows", tokenizer, *limits)
    assert len(train) == len(rows)
    return train


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [
        {
            key: {name: each for name, each in value.items() if name not in names}
            if key.startswith("sampled")
            else value
            for key, value in row.items()
            if not (key.startswith("sampled") and not names)
        }
        for row in rows
    ]


@pytest.mark.shared
@pytest.mark.parametrize("template", BUILT_IN)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_from_is_what_was_sampled(name, template, request, tmp_path):
    tokenizer = tokenizer_of(name, template, request)
    rows, eos = sampled_rows(tokenizer), tokenizer.eos_token_id
    train = prepared(rows, tokenizer, tmp_path / "own")
    finished = set()
    for row, trained in zip(rows, train, strict=True):
        for side in ("chosen", "rejected"):
            ids, how = trained[f"{side}_ids"], row[f"sampled_{side}"]
            assert ids == how["ids"] and ids.count(eos) == (ids[-1] == eos) == how["finished"]
            finished.add(how["finished"])
    assert finished == {True, False}
    prompts = Encoder(tokenizer, 512)
    asked = [tuple(Message(each["role"], each["content"]) for each in row["prompt"]) for row in rows]
    assert [trained["prompt_ids"] for trained in train] == [prompts.encode_prompt(prompt, 0) for prompt in asked]
    # As texts they would have been other tokens, unless every character is a token and nothing is written before it.
    texts = prepared(without(rows), tokenizer, tmp_path / "texts")
    others = any(
        a["chosen_ids"][:-1] != b["chosen_ids"][: len(a["chosen_ids"]) - 1] for a, b in zip(texts, train, strict=True)
    )
    assert others or (name, template) == ("babyllama105-hf", "plain")
    assert all(trained[f"{side}_ids"][-1] == eos for trained in texts for side in ("chosen", "rejected"))
    # Reward models read what they are asked about: texts, with their end.
    assert prepared(rows, tokenizer, tmp_path / "reward", own=False) == texts
    # Rows that say nothing are what they were before rows could.
    assert texts == prepared(without(rows), tokenizer, tmp_path / "before", own=False)


@pytest.mark.shared
@pytest.mark.parametrize("template", BUILT_IN)
@pytest.mark.parametrize("name", NAMES)
def test_without_its_tokens_a_cut_completion_is_its_text_without_an_end(name, template, request, tmp_path):
    tokenizer = tokenizer_of(name, template, request)
    rows, eos = sampled_rows(tokenizer), tokenizer.eos_token_id
    texts = prepared(without(rows), tokenizer, tmp_path / "texts")
    for number, row in enumerate(rows):  # readable, so that its text can be looked for
        row["rejected"] = f"and then number {number} said no"
        row["sampled_rejected"] |= {"text": text_key(row["rejected"])}
    whole = prepared(without(rows), tokenizer, tmp_path / "whole")
    found = prepared(without(rows, "ids", "context"), tokenizer, tmp_path / "old ledger")
    for number, (row, trained) in enumerate(zip(rows, found, strict=True)):
        ids = trained["rejected_ids"]
        if row["sampled_rejected"]["finished"]:
            assert ids == whole[number]["rejected_ids"]
        else:
            assert eos not in ids and ids == whole[number]["rejected_ids"][: len(ids)]
            assert tokenizer.decode(ids).strip().endswith("said no")
        if row["sampled_chosen"]["finished"]:
            assert trained["chosen_ids"] == texts[number]["chosen_ids"]
        else:
            assert eos not in trained["chosen_ids"]


def test_each_side_is_for_itself(tmp_path):
    tokenizer = byte_level()
    ensure_chat_template(tokenizer, "plain")
    rows = sampled_rows(tokenizer)
    texts = prepared(without(rows), tokenizer, tmp_path / "texts")
    for row in rows:
        del row["sampled_rejected"]
    train = prepared(rows, tokenizer, tmp_path / "own")
    assert [row["chosen_ids"] for row in train] == [row["sampled_chosen"]["ids"] for row in rows]
    assert [row["rejected_ids"] for row in train] == [row["rejected_ids"] for row in texts]


@pytest.mark.parametrize("changed", ["prompt", "text", "template", "tokenizer", "unknown token"])
def test_tokens_of_something_else_are_not_used(changed, tmp_path):
    tokenizer = byte_level()
    ensure_chat_template(tokenizer, "plain")
    rows = [row for row in sampled_rows(tokenizer) if row["sampled_chosen"]["finished"]]
    for row in rows:
        del row["sampled_rejected"]
        if changed == "prompt":
            row["prompt"][-1]["content"] += " more"
        if changed == "text":
            row["chosen"] += "!"
            row["sampled_chosen"]["finished"] = False
        if changed == "unknown token":
            row["sampled_chosen"]["ids"][0] = len(tokenizer)
    if changed == "template":
        ensure_chat_template(tokenizer, "transcript")
    if changed == "tokenizer":
        tokenizer = byte_level(unk_token="<|im_start|>")
        ensure_chat_template(tokenizer, "plain")
    assert prepared(rows, tokenizer, tmp_path / "a") == prepared(without(rows), tokenizer, tmp_path / "b")


def test_completions_alone_are_the_sampled_tokens_as_well(tmp_path):
    tokenizer = byte_level()
    ensure_chat_template(tokenizer, "plain")
    rows = sampled_rows(tokenizer)
    for row in rows[:9]:
        row["probability"] = 0.2  # the rejected one is preferred
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data, encoder = (
        {"own": DataSpec(path=str(path), eval_fraction=0.0)},
        Encoder(tokenizer, 512, as_sampled=AsSampled(tokenizer)),
    )
    expected = [row["sampled_rejected" if "probability" in row else "sampled_chosen"]["ids"] for row in rows]
    found = [encoder.encode_demonstration(each) for each in load_demonstrations(("own",), data, 17).train]
    assert [each.completion_ids for each in found] == expected
    unpaired = load_unpaired(("own",), data, 17).train
    both = [encoder.encode_answer(each.prompt, each.completion, each.sampled) for each in unpaired]
    assert [each.completion_ids for each in both] == [
        row[f"sampled_{side}"]["ids"] for row in rows for side in ("chosen", "rejected")
    ]


@pytest.mark.parametrize(
    "value",
    [7, "yes", [1, 2], {}, {"finished": 1, "text": "a"}, {"finished": True}, {"finished": True, "text": "a", "ids": 5},
     {"finished": True, "text": "a", "ids": [1.5]}, {"finished": True, "text": "a", "ids": [-1]},
     {"finished": True, "text": "a", "ids": [1], "context": 3}],
)  # fmt: skip
def test_what_is_not_of_that_form_is_refused_by_name(value, jsonl, tmp_path):
    tokenizer = byte_level()
    ensure_chat_template(tokenizer, "plain")
    path = jsonl({"prompt": "a", "chosen": "b", "rejected": "c", "sampled_rejected": value})
    with pytest.raises(DataError, match="line 1: column 'sampled_rejected'"):
        check(("own",), {"own": DataSpec(path=path)}, tmp_path / "rows", tokenizer)


def test_a_table_holds_it_as_json(write, tmp_path):
    tokenizer = byte_level()
    ensure_chat_template(tokenizer, "plain")
    rows = sampled_rows(tokenizer)
    expected = prepared(rows, tokenizer, tmp_path / "lines")
    for name in ("rows.csv", "rows.parquet"):
        texts = [{**row, "prompt": row["prompt"][-1]["content"]} for row in rows if len(row["prompt"]) == 1]
        path = write(name, texts)
        encoder = PairEncoder(tokenizer, 512, as_sampled=AsSampled(tokenizer))
        train, _, _ = at_once(
            ("own",), {"own": DataSpec(path=str(path), eval_fraction=0.0)}, encoder, tmp_path / name.replace(".", "")
        )
        wanted = [row["chosen_ids"] for row, source in zip(expected, rows, strict=True) if len(source["prompt"]) == 1]
        assert [row["chosen_ids"] for row in train] == wanted


def test_what_was_sampled_with_a_control_token_inside_is_its_text() -> None:
    """The text that was judged does not show it, and no row is to have one inside an answer."""
    tokenizer = tiny_tokenizer()
    ensure_chat_template(tokenizer, "plain")
    own, eos = AsSampled(tokenizer), tokenizer.eos_token_id
    asked: Prompt = (Message("user", "the lamp"),)
    words = list(tokenizer(" is red", add_special_tokens=False)["input_ids"])
    control = [number for number in tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)) if number != eos]
    assert control
    for ids, ended, used in (
        ([*words, eos], True, True), (words, False, True), ([*words, control[0], *words, eos], True, False),
        ([*words, control[0]], False, False), ([control[0], *words], False, False),
    ):  # fmt: skip
        text = tokenizer.decode(ids, skip_special_tokens=True)
        how = SampledTokens(ended, text_key(text), tuple(ids), own.context(asked))
        assert own.ids(asked, text, how) == (ids if used else None), ids
        found = Encoder(tokenizer, 64, as_sampled=own).encode_answer(asked, text, how)
        assert found is not None and not set(control) & set(found.completion_ids)
        assert found.completion_ids.count(eos) == int(ended)
