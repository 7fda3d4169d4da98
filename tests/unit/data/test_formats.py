from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data import formats
from prefopt.data.formats import FORMATS, Reason, choose, convert, detect, is_blank, rename
from prefopt.data.sources import SourceRow, read_rows
from prefopt.errors import DataError
from prefopt.recipe.schema import DataSpec
from prefopt.records import Demonstration, Message, PreferencePair

from .conftest import CONTAINERS

SYSTEM, USER, ANSWER = Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Ho")


def chat(*contents: str, system: str = "") -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]
    return [{"role": "system", "content": system}] * bool(system) + turns


def rows_of(*rows: dict[str, Any]) -> list[SourceRow]:
    return [SourceRow(number, row, f"rows, row {number}") for number, row in enumerate(rows, 1)]


def converted(name: str, *rows: dict[str, Any]) -> tuple[list[Any], list[Reason]]:
    dropped: list[Reason] = []
    return [item for _, item in convert(rows_of(*rows), FORMATS[name], dropped.append)], dropped


HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant:"
HH_PROMPT = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "And?"))
ASK = (Message("user", "Hi"),)
EXAMPLES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "explicit strings": (
        "preference", {"prompt": "Hi", "chosen": " a ", "rejected": "b"}, PreferencePair(ASK, " a ", "b"),
    ),
    "explicit lists": (
        "preference",
        {"prompt": chat("Hi", system="Be kind."), "chosen": [{"role": "assistant", "content": "a"}],
         "rejected": [{"role": "assistant", "content": "b"}]},
        PreferencePair((SYSTEM, USER), "a", "b"),
    ),
    "explicit prompt text, whole conversations": (
        "preference", {"prompt": "Hi", "chosen": chat("Hi", "a"), "rejected": chat("Hi", "b")},
        PreferencePair(ASK, "a", "b"),
    ),
    "explicit with an HH prompt": (
        "preference", {"prompt": HH, "chosen": "a", "rejected": "b"}, PreferencePair(HH_PROMPT, "a", "b"),
    ),
    "implicit lists": (
        "implicit", {"chosen": chat("Hi", "Hello.", "And?", "a"), "rejected": chat("Hi", "Hello.", "And?", "b")},
        PreferencePair(HH_PROMPT, "a", "b"),
    ),
    "implicit strings": (
        "implicit", {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        PreferencePair((Message("user", "The sky is"),), " blue.", " black."),
    ),
    "hh": ("hh", {"chosen": HH + " a ", "rejected": HH + " b"}, PreferencePair(HH_PROMPT, "a", "b")),
    "saferlhf": (
        "saferlhf",
        {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
        PreferencePair(ASK, "b", "a", axes={"safe": 0.0}),
    ),
    "rated": (
        "preference",
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 7.5, "score_rejected": 5.0,
         "axes": {"safe": 0.25}},
        PreferencePair(ASK, "a", "b", margin=2.5, score_chosen=7.5, score_rejected=5.0, axes={"safe": 0.25}),
    ),
    "messages": ("messages", {"messages": chat("Hi", "a")}, Demonstration(ASK, "a")),
    "messages without answer": ("messages", {"messages": chat("Hi")}, ASK),
    "prompt_completion strings": (
        "prompt_completion", {"prompt": "Hi", "completion": "a"}, Demonstration(ASK, "a"),
    ),
    "prompt_completion lists": (
        "prompt_completion", {"prompt": chat("Hi"), "completion": [{"role": "assistant", "content": "a"}]},
        Demonstration(ASK, "a"),
    ),
    "text": ("text", {"text": " a\n"}, " a\n"),
    "prompt": ("prompt", {"prompt": chat("Hi")}, ASK),
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_format_is_found_and_read_from_every_container(write, container, example):
    name, row, expected = EXAMPLES[example]
    rows = read_rows(DataSpec(path=str(write(container, [row]))), lambda line: None)
    found, rows = choose(rows, "auto", tuple(FORMATS))
    assert found.name == name
    dropped: list[Reason] = []
    assert [item for _, item in convert(rows, found, dropped.append)] == [expected]
    assert dropped == []


CTRL = "\u200b\ufeff \x07\n"
DROPS: list[tuple[str, dict[str, Any], Reason]] = [
    ("preference", {"prompt": "", "chosen": "a", "rejected": "b"}, Reason.EMPTY_PROMPT),
    ("preference", {"prompt": CTRL, "chosen": "a", "rejected": "b"}, Reason.EMPTY_PROMPT),
    ("preference", {"prompt": [], "chosen": chat("", "a")[1:], "rejected": chat("", "b")[1:]}, Reason.EMPTY_PROMPT),
    ("preference", {"prompt": "Hi", "chosen": "", "rejected": "b"}, Reason.EMPTY_COMPLETION),
    ("preference", {"prompt": "Hi", "chosen": "a", "rejected": CTRL}, Reason.EMPTY_COMPLETION),
    ("preference", {"prompt": "Hi", "chosen": [], "rejected": chat("", "b")[1:]}, Reason.EMPTY_COMPLETION),
    ("preference", {"prompt": "Hi", "chosen": "a", "rejected": " a\n"}, Reason.EQUAL),
    (
        "preference",
        {"prompt": "Hi", "chosen": chat("Hi", "a"), "rejected": chat("Hi", "x", "And", "b")},
        Reason.DIVERGES,
    ),
    ("implicit", {"chosen": chat("Hi", "a"), "rejected": chat("Hi", "a")}, Reason.EQUAL),
    ("implicit", {"chosen": "same text", "rejected": "same text "}, Reason.EQUAL),
    ("implicit", {"chosen": " ", "rejected": ""}, Reason.EMPTY_COMPLETION),
    ("implicit", {"chosen": [], "rejected": chat("Hi", "a")}, Reason.EMPTY_COMPLETION),
    ("implicit", {"chosen": chat("Hi", " "), "rejected": chat("Hi", "a")}, Reason.EMPTY_COMPLETION),
    ("implicit", {"chosen": chat("Hi", "a", "B", "c"), "rejected": chat("Hi", "x", "B", "y")}, Reason.DIVERGES),
    ("implicit", {"chosen": chat("Hi", "a"), "rejected": chat("Hi", "a", "B", "y")}, Reason.DIVERGES),
    ("hh", {"chosen": HH + " a", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello."}, Reason.DIVERGES),
    ("hh", {"chosen": HH + " a", "rejected": HH + " "}, Reason.EMPTY_COMPLETION),
    ("hh", {"chosen": HH + " a", "rejected": HH + " a"}, Reason.EQUAL),
    ("hh", {"chosen": "\n\nHuman: \n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"}, Reason.EMPTY_PROMPT),
    ("messages", {"messages": []}, Reason.EMPTY_PROMPT),
    ("messages", {"messages": chat("", "a")}, Reason.EMPTY_PROMPT),
    ("messages", {"messages": [{"role": "assistant", "content": "a"}]}, Reason.EMPTY_PROMPT),
    ("messages", {"messages": chat("Hi", "")}, Reason.EMPTY_COMPLETION),
    ("prompt_completion", {"prompt": "Hi", "completion": "\n"}, Reason.EMPTY_COMPLETION),
    ("prompt_completion", {"prompt": "\t", "completion": "a"}, Reason.EMPTY_PROMPT),
    ("text", {"text": CTRL}, Reason.EMPTY_TEXT),
    ("prompt", {"prompt": " "}, Reason.EMPTY_PROMPT),
]


@pytest.mark.parametrize(("name", "row", "reason"), DROPS)
def test_useless_rows_are_dropped_with_the_reason(name, row, reason):
    assert converted(name, row) == ([], [reason])


PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
TOOL = {"role": "tool", "content": "x"}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("preference", {"prompt": "Hi", "chosen": "a"}, "column 'rejected': expected the column, it is missing"),
    ("preference", PAIR | {"prompt": None}, "column 'prompt': expected a value, found null"),
    ("preference", PAIR | {"chosen": 3}, "column 'chosen': expected text or a list of messages, found int"),
    ("preference", PAIR | {"chosen": True}, "column 'chosen': expected text or a list of messages, found bool"),
    ("preference", PAIR | {"rejected": chat("Hi", "b")}, "column 'rejected': expected text as in 'chosen'"),
    ("preference", PAIR | {"prompt": chat("Hi", "Ho")}, "column 'prompt': expected a last turn by the user"),
    (
        "preference",
        PAIR | {"chosen": chat("Hi"), "rejected": chat("Hi")},
        "'chosen': expected a last turn by the assis",
    ),
    (
        "preference",
        PAIR | {"chosen": chat("No", "a"), "rejected": chat("No", "b")},
        "'chosen': expected the assistant's",
    ),
    ("preference", PAIR | {"margin": "high"}, "column 'margin': expected a finite number, found 'high'"),
    ("preference", PAIR | {"margin": float("nan")}, "column 'margin': expected a finite number, found nan"),
    ("preference", PAIR | {"margin": True}, "column 'margin': expected a finite number, found True"),
    (
        "preference",
        PAIR | {"probability": 1.5},
        "column 'probability': expected a finite number from 0 to 1, found 1.5",
    ),
    ("preference", PAIR | {"weight": -1}, "column 'weight': expected a finite number of at least 0, found -1"),
    ("preference", PAIR | {"annotator": [1]}, "column 'annotator': expected text or a whole number, found list"),
    (
        "implicit",
        {"chosen": chat("Hi", "a"), "rejected": chat("Yo", "b")},
        "'rejected': expected a conversation that begi",
    ),
    (
        "implicit",
        {"chosen": "one text", "rejected": "other text"},
        "'rejected': expected a text that begins as 'chosen'",
    ),
    (
        "implicit",
        {"chosen": chat("Hi", "a"), "rejected": chat("Hi")},
        "column 'rejected': expected a last turn by the as",
    ),
    ("hh", {"chosen": HH + "a", "rejected": "\n\nHuman: Hi"}, "column 'rejected': expected a transcript"),
    ("hh", {"chosen": chat("Hi", "a"), "rejected": HH}, "column 'chosen': expected text, found a list"),
    ("messages", {"messages": "Hi"}, "column 'messages': expected a list of messages, found text"),
    ("messages", {"messages": [TOOL]}, "expected role system, user, assistant in message 1, found 'tool'"),
    ("messages", {"messages": [*chat("Hi", "a"), *chat(system="x")]}, "a system message first only, found one as mess"),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "text as content of message 1, found NoneType"),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "text as content of message 1, found l",
    ),
    ("messages", {"messages": ["Hi"]}, "expected {'role', 'content'} as message 1, found 'Hi'"),
    ("text", {"text": None}, "column 'text': expected a value, found null"),
    ("text", {"text": chat("Hi")}, "column 'text': expected text, found a list"),
    (
        "prompt_completion",
        {"prompt": "Hi", "completion": {}},
        "column 'completion': expected text or a list of messages",
    ),
    (
        "saferlhf",
        {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 2},
        "column 'better_response_id': expected a finite number from 0 to 1, found 2",
    ),
    (
        "saferlhf",
        {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0.5},
        "column 'better_response_id': expected a whole number from 0 to 1, found 0.5",
    ),
    ("preference", {**PAIR, "axes": [1]}, "column 'axes': expected a mapping of names to numbers, found [1]"),
    ("preference", {**PAIR, "axes": "{safe"}, "column 'axes': expected a mapping of names to numbers, found '{safe'"),
]


@pytest.mark.parametrize(("name", "row", "says"), WRONG)
def test_wrong_rows_are_errors_that_name_row_column_and_format(name, row, says):
    with pytest.raises(DataError) as caught:
        converted(name, row)
    message = str(caught.value)
    assert message.startswith("rows, row 1: column ") and says in message
    assert f"read as format '{name}'; columns seen: {', '.join(row)}" in message


def test_text_in_one_row_and_messages_in_the_next_is_an_error():
    with pytest.raises(DataError, match="row 2: column 'prompt': expected text as in the rows before, found a list"):
        converted("prompt_completion", {"prompt": "Hi", "completion": "a"}, {"prompt": chat("Hi"), "completion": "a"})


def test_optional_columns_are_read_and_the_others_survive():
    row = PAIR | {"probability": 0.75, "margin": "1.5", "weight": 2, "source": "web", "annotator": 7, "id": "x"}
    (pair,), _ = converted("preference", row | {"score": [1, 2], "lang": "en", "nothing": None})
    assert (pair.probability, pair.margin, pair.weight) == (0.75, 1.5, 2.0)
    assert (pair.source, pair.annotator, pair.id) == ("web", "7", "x")
    assert pair.extra == {"score": [1, 2], "lang": "en"}
    (plain,), _ = converted("preference", PAIR | {"margin": "", "weight": None, "id": None})
    assert (plain.margin, plain.weight, plain.id, plain.extra) == (None, 1.0, "", {})


class TestHHTranscripts:
    def test_the_last_marker_counts_and_answers_may_quote_markers(self):
        (pair,), _ = converted("hh", {"chosen": HH + " Say Human: no.", "rejected": HH + " x\nAssistant: y"})
        assert (pair.chosen, pair.rejected) == ("Say Human: no.", "x\nAssistant: y")
        assert pair.prompt == HH_PROMPT

    def test_text_before_the_first_turn_is_the_system_message(self):
        (pair,), _ = converted("hh", {"chosen": "Human: Hi\n\nAssistant: a", "rejected": "Human: Hi\n\nAssistant: b"})
        assert pair.prompt == ASK
        prompt = formats.conversations.parse_transcript("Be kind.\n\nHuman: Hi")
        assert prompt == (SYSTEM, USER)

    @given(st.lists(st.text("ab :\n", max_size=6).map(str.strip), min_size=1, max_size=5))
    def test_transcripts_come_back_as_they_were_written(self, turns):
        text = "".join(f"\n\n{('Human', 'Assistant')[index % 2]}: {turn}" for index, turn in enumerate(turns))
        assert [message.content for message in formats.conversations.parse_transcript(text)] == turns


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_implicit_texts_lose_no_character(start, one, other):
    row = {"chosen": "word " + start + one, "rejected": "word " + start + other}
    pairs, dropped = converted("implicit", row)
    assert len(pairs) + len(dropped) == 1
    for pair in pairs:
        assert pair.prompt[0].content + pair.chosen == row["chosen"]
        assert pair.prompt[0].content + pair.rejected == row["rejected"]


class TestDetection:
    def test_nothing_fits(self):
        with pytest.raises(DataError) as caught:
            detect(rows_of({"question": "a", "answer": "b"}), formats.PAIRS)
        message = str(caught.value)
        assert "rows, row 1" in message and "columns seen: question, answer" in message
        assert "preference (prompt, chosen, rejected); hh (" in message and "columns: {canonical: yours}" in message

    @pytest.mark.parametrize(
        ("row", "names"),
        [
            (PAIR | {"messages": chat("Hi", "a")}, "preference and messages"),
            ({"prompt": "a", "completion": "b", "text": "ab"}, "prompt_completion and text"),
            ({"prompt": "a", "chosen": HH + "a", "rejected": HH + "b"}, "preference and hh"),
        ],
    )
    def test_several_fit(self, row, names):
        with pytest.raises(DataError, match=f"row 1: the row fits the formats {names}; columns seen: .*set `format`"):
            detect(rows_of(row), tuple(FORMATS))
        assert detect(rows_of(row), tuple(FORMATS), first_match=True).name == names.split()[0]

    def test_only_the_formats_the_caller_can_use_are_looked_for(self):
        assert detect(rows_of(PAIR | {"messages": chat("Hi", "a")}), formats.PAIRS).name == "preference"

    def test_a_row_that_does_not_tell_is_passed_over(self):
        rows = rows_of({"chosen": None, "rejected": None}, {"chosen": HH + "a", "rejected": HH + "b"})
        assert detect(rows, formats.PAIRS).name == "hh"

    def test_a_named_format_that_the_caller_cannot_use(self):
        with pytest.raises(
            DataError, match=r"format 'text' cannot be used here.*one of: preference, hh, implicit, saferlhf"
        ):
            choose(rows_of({"text": "a"}), "text", formats.PAIRS)


class TestRename:
    def test_columns_can_be_swapped_and_a_mapped_one_hides_its_namesake(self):
        (row,) = rename(rows_of(PAIR), {"chosen": "rejected", "rejected": "chosen"})
        assert row.row == {"prompt": "Hi", "chosen": "b", "rejected": "a"}
        (row,) = rename(rows_of({"text": "old", "body": "new"}), {"text": "body"})
        assert row.row == {"text": "new"}

    def test_a_missing_source_and_an_unknown_target_are_errors(self):
        with pytest.raises(
            DataError, match=r"row 1: no column 'question', which `columns` maps to 'prompt'.*seen: text"
        ):
            list(rename(rows_of({"text": "a"}), {"prompt": "question"}))
        with pytest.raises(
            DataError, match=r"'promt' is not a canonical column.*known: annotator, axes, better_response_id, chosen"
        ):
            list(rename(rows_of({"text": "a"}), {"promt": "text"}))


@pytest.mark.parametrize("text", ["", " \t\n", "\x00\x1f", "\u200d\u2060", "\u202e", "\u3000\u2028"])
def test_blank(text):
    assert is_blank(text) and not is_blank(text + "a") and not is_blank(text + "👍🏽") and not is_blank(text + ".")


def test_an_axis_out_of_range_is_named_and_one_without_a_label_is_left_out() -> None:
    (_, pair), *_ = convert(rows_of({**PAIR, "axes": {"safe": 1, "brief": None}}), FORMATS["preference"], pytest.fail)
    assert pair.axes == {"safe": 1.0}
    with pytest.raises(DataError, match="row 1: column 'axes': column 'safe': expected a finite number from 0 to 1"):
        list(convert(rows_of({**PAIR, "axes": {"safe": 2}}), FORMATS["preference"], pytest.fail))
