"""Costs of form, of other scripts, and of copies of the prompt."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefopt.records import Message
from prefopt.rewards.costs.drift import script_of
from tests.unit.rewards.costs.measuring import LONG, PROMPT, marked, measure, opened


def said(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ('{"a": 1}', 0), ("[1, 2]", 0), ('"text"', 0), ("", 1), ("{", 1), ("{'a': 1}", 1), ("NaN", 1), ("[1e999]", 0),
        ('{"a": 1} and more', 1), ("[" * LONG, 1), ('```json\n{"a": 1}\n```', 1),
    ],
)  # fmt: skip
def test_json_is_json(text: str, missing: float) -> None:
    assert measure(opened("format", syntax="json"), text).value == missing


def test_keys_are_those_of_the_object() -> None:
    cost = opened("format", syntax="json", keys=["a", "b"])
    found = [measure(cost, text).value for text in ('{"b": 0, "a": null}', '{"a": {"b": 1}}', "{}", "[]", "nothing")]
    assert found == [0, 0.5, 1, 1, 1]


def test_sections_begin_lines_in_their_order() -> None:
    cost = opened("format", sections=["Reasoning:", "Answer:"])
    texts = {
        "Reasoning: so\n  Answer: 3": 0, "Answer: 3\nReasoning: so": 0.5, "the Answer: 3": 1, "": 1,
        "Reasoning: Answer: 3": 0.5, "Reasoning:\r\nAnswer:": 0,
    }  # fmt: skip
    assert {text: measure(cost, text).value for text in texts} == texts


def test_a_pattern_must_match_the_whole() -> None:
    cost = opened("format", pattern="<think>.*</think>.+")
    found = [
        measure(cost, text).value for text in ("<think>a\nb</think>c", "<think></think>", "x<think>a</think>c", "")
    ]
    assert found == [0, 1, 1, 1]


@pytest.mark.parametrize("options", [{}, {"pattern": "a", "syntax": "json"}, {"sections": ["a"], "keys": ["b"]}])
def test_one_form_at_a_time(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        opened("format", **options)


@pytest.mark.parametrize(
    ("prompt", "text", "value", "found"),
    [
        ("a lamp", "a red lamp", 0, []),
        ("a lamp", "", 0, []),
        ("a lamp", "1234 -- !", 0, []),
        ("a lamp", "café ｆｕｌｌ 𝐛𝐨𝐥𝐝", 0, []),
        ("a lamp", "lamp лампа", 5 / 9, ["лампа"]),
        ("a lamp", "灯 lamp 灯", 2 / 6, ["灯", "灯"]),
        ("лампа", "лампа", 0, []),
        ("лампа", "lamp", 1, ["lamp"]),
        ("ランプ", "赤いランプ", 0, []),  # kana allow kanji
        ("灯", "赤いランプ", 4 / 5, ["いランプ"]),
        ("램프", "램프 lamp", 4 / 6, ["lamp"]),
        ("123?", "anything", 0, []),
        ("write about Москва in English, for travellers", "Москва", 0, []),  # more than a tenth of the letters
        ("write about what you can see when you travel to the town of Я", "Я и ты", 1, ["Я", "и", "ты"]),
    ],
)
def test_letters_of_another_script_cost_their_share(prompt: str, text: str, value: float, found: list[str]) -> None:
    measured = measure(opened("script"), text, prompt=said(prompt))
    assert (measured.value, marked(measured, text)) == (pytest.approx(value), found)


def test_scripts_can_be_allowed() -> None:
    assert measure(opened("script", scripts=["greek"]), "lamp λ", prompt=said("a lamp")).value == 0
    assert [script_of(character) for character in "aяλ漢あア한ｱ々1 é"] == [
        "LATIN", "CYRILLIC", "GREEK", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "KATAKANA", "CJK", "", "", "LATIN",
    ]  # fmt: skip


def test_copies_of_the_prompt_cost_their_share() -> None:
    cost = opened("prompt_copy", ngram=3)
    text = "You asked: tell me ABOUT the red lamp. It is nice."
    measured = measure(cost, text)
    assert marked(measured, text) == ["tell me ABOUT the red lamp"] and measured.value == pytest.approx(4 / 9)
    assert measure(cost, "red lamp").value == 0 and measure(cost, "").value == 0
    whole = PROMPT[0].content
    assert measure(cost, whole).value == 1 and marked(measure(cost, whole), whole) == [whole[:-1]]


@given(st.text(alphabet="İıiI lamp\u0307ß", max_size=40), st.text(alphabet="İıiI lamp\u0307ß", max_size=40))
def test_a_copy_in_any_letters_is_within_the_text(prompt: str, text: str) -> None:
    for size in (1, 2):
        measured = measure(opened("prompt_copy", ngram=size), text, prompt=said(f"{prompt} x"))
        assert 0 <= measured.value <= 1
        assert all(0 <= start < end <= len(text) for start, end in measured.spans)


@pytest.mark.parametrize("text", ["lamp " * (LONG // 5), "лампа" * (LONG // 5), "a灯" * (LONG // 2)])
def test_100_000_characters_take_no_time(text: str) -> None:
    start = time.perf_counter()
    for cost in (
        opened("script"), opened("prompt_copy"), opened("format", syntax="json"), opened("format", pattern=".*b"),
        opened("format", sections=["a", "b"]), opened("length", limit=3, unit="words"),
    ):  # fmt: skip
        measure(cost, text)
    assert time.perf_counter() - start < 10
