"""Edits of the conversation that teacher and student read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefopt.data.contexts import edited, in_context
from prefopt.data.load import load_demonstrations, load_prompts
from prefopt.data.splits import prompt_key
from prefopt.errors import DataError
from prefopt.recipe.distill import ContextEdit
from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.schema import DataSpec
from prefopt.records import Message, PreferencePair, Prompt

FULL: Prompt = (
    Message("system", "you sell lamps"),
    Message("user", "hello"),
    Message("assistant", "hi"),
    Message("user", "which  colour is it"),
)
BARE: Prompt = (Message("user", "which colour"),)


def texts(prompt: Prompt, *edits: dict) -> list[str]:
    return [f"{m.role}: {m.content}" for m in edited(prompt, [ContextEdit.model_validate(edit) for edit in edits])]


def test_no_edit_changes_nothing() -> None:
    assert edited(FULL, ()) == FULL


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"do": "drop"}, ["user: hello", "assistant: hi", "user: which  colour is it"]),
        ({"do": "drop", "role": "history"}, ["system: you sell lamps", "user: which  colour is it"]),
        ({"do": "replace", "text": "be kind"}, ["system: be kind", "user: hello", "assistant: hi"]),
        ({"do": "prepend", "text": "be kind"}, ["system: be kind\n\nyou sell lamps"]),
        ({"do": "append", "text": "be kind"}, ["system: you sell lamps\n\nbe kind"]),
        ({"do": "template", "text": "<{content}>{content}"}, ["system: <you sell lamps>you sell lamps"]),
        ({"do": "shorten", "words": 2}, ["system: you sell", "user: hello"]),
    ],
)
def test_an_edit_of_the_system_turn_or_the_history(edit: dict, expected: list[str]) -> None:
    assert texts(FULL, edit)[: len(expected)] == expected


def test_the_last_user_turn_is_edited_and_no_other() -> None:
    found = texts(FULL, {"do": "template", "role": "user", "text": "say: {content}?"})
    assert found == ["system: you sell lamps", "user: hello", "assistant: hi", "user: say: which  colour is it?"]
    assert texts(FULL, {"do": "shorten", "role": "user", "words": 2})[-1] == "user: which colour"


def test_a_system_turn_that_is_not_there_counts_as_empty() -> None:
    assert texts(BARE, {"do": "prepend", "text": "be kind"}) == ["system: be kind", "user: which colour"]
    assert texts(BARE, {"do": "drop"}) == texts(BARE, {"do": "shorten", "words": 3}) == ["user: which colour"]


def test_edits_are_applied_in_order() -> None:
    first, second = {"do": "append", "text": "b"}, {"do": "prepend", "text": "a"}
    assert texts(BARE, {"do": "replace", "text": "x"}, first, second)[0] == "system: a\n\nx\n\nb"
    assert texts(FULL, first, {"do": "drop"})[0] == "user: hello"


def test_nothing_to_answer_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing of the turn"):
        texts(BARE, {"do": "replace", "role": "user", "text": " "})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"do": "prepend"}, "needs a 'text'"),
        ({"do": "drop", "text": "x"}, "takes no 'text'"),
        ({"do": "shorten"}, "needs 'words'"),
        ({"do": "replace", "text": "x", "words": 2}, "takes no 'words'"),
        ({"do": "template", "text": "x"}, "{content}"),
        ({"do": "drop", "role": "user"}, "nothing to answer"),
        ({"do": "append", "role": "history", "text": "x"}, "only be dropped"),
        ({"do": "burn"}, "'drop', 'replace'"),
    ],
)
def test_an_edit_that_means_nothing_is_refused(edit: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace("{", r"\{")):
        ContextEdit.model_validate(edit)


EDITS = [ContextEdit.model_validate({"do": "prepend", "text": "be kind"})]


def test_a_data_set_of_any_form_is_put_into_another_context() -> None:
    expected = (Message("system", "be kind"), *BARE)
    answer = Message("assistant", "red")
    assert in_context(BARE, EDITS) == expected
    assert in_context((*BARE, answer), EDITS) == (*expected, answer)
    pair = PreferencePair(BARE, "red", "blue")
    assert in_context(pair, EDITS) == PreferencePair(expected, "red", "blue") and in_context(pair, ()) is pair
    with pytest.raises(DataError, match="no context"):
        in_context("once upon a time", EDITS)


def test_what_a_data_set_holds_out_is_held_out_in_its_context() -> None:
    plain = DataSpec(path="toy", name="demonstrations", max_samples=40, eval_fraction=0.25)
    data = {"plain": plain, "kind": plain.model_copy(update={"context": tuple(EDITS)})}
    loaded = load_demonstrations(("kind",), data, 3)
    assert all(row.prompt[0].content.startswith("be kind\n\nyou work") for row in (*loaded.train, *loaded.eval))
    assert len(loaded.eval) >= 5
    prompts = load_prompts(("kind",), data, 3)
    assert {prompt_key(row.prompt) for row in loaded.eval} == {prompt_key(prompt) for prompt in prompts.eval}
    assert "context" in spec_for_key(data["kind"]) and "context" not in spec_for_key(plain), "older keys stay"
