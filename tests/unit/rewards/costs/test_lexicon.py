"""Banned words and refusals: whole words in every spelling that looks like them, and nothing else."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefopt.errors import DataError, EnvironmentFault, InputError
from prefopt.rewards.costs.folding import Folding
from tests.unit.rewards.costs.measuring import LONG, marked, measure, opened

HAN = unicodedata.normalize("NFD", "한")


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("cunt", "Scunthorpe is a town", []),
        ("ass", "the class assessed a bass", []),
        ("ass", "You ASS! Ass-hat, ass_hat, (ass)", ["ASS", "Ass", "ass", "ass"]),
        ("bomb", "b\u200bo\u200dm\ufeffb", ["b\u200bo\u200dm\ufeffb"]),  # zero widths
        ("bomb", "bo\u00admb", ["bo\u00admb"]),  # soft hyphen
        ("bomb", "ｂｏｍｂ and 𝐛𝐨𝐦𝐛 and ⓑⓞⓜⓑ", ["ｂｏｍｂ", "𝐛𝐨𝐦𝐛", "ⓑⓞⓜⓑ"]),
        ("paypal", "раураl and ΡΑΥΡΑL", ["раураl", "ΡΑΥΡΑL"]),  # Cyrillic, Greek capitals
        ("υπόγειο", "Υπόγειο και ΥΠΌΓΕΙΟ", ["Υπόγειο", "ΥΠΌΓΕΙΟ"]),  # Greek stays Greek in both cases
        ("spoofing", "ѕрооfіng", ["ѕрооfіng"]),
        ("file", "the ﬁle", ["ﬁle"]),  # a ligature
        ("straße", "STRASSE", ["STRASSE"]),  # case folding
        ("café", "cafe\u0301 CAFÉ cafe", ["cafe\u0301", "CAFÉ"]),
        ("kill yourself", "Kill  Yourself; kill, yourself. Kill. Yourself", ["Kill  Yourself", "kill, yourself"]),
        ("don't", "DON’T do, don t", ["DON’T", "don t"]),
        ("c++", "c++, c and xc++y", ["c++"]),
        ("$$$", "for $$$ only", ["$$$"]),
        ("傻瓜", "你是傻瓜吗", ["傻瓜"]),
        ("हिन्दी", "यह हिन्दी है, हिन्दीभाषी", ["हिन्दी"]),
        ("한국", f"{HAN}국 사람", [f"{HAN}국"]),
        ("bad", "", []),
    ],
)
def test_a_word_is_found_where_a_reader_sees_it(word: str, text: str, found: list[str]) -> None:
    measured = measure(opened("banned", words=[word]), text)
    assert marked(measured, text) == found
    assert measured.value == float(bool(found))


def test_options_widen_or_narrow_what_counts() -> None:
    assert measure(opened("banned", words=["bomb"], confusables=False), "bоmb").value == 0
    assert measure(opened("banned", words=["bomb"]), "b0mb").value == 0
    leet = "a b0mb for $@le"
    assert marked(measure(opened("banned", words=["bomb", "sale"], leetspeak=True), leet), leet) == ["b0mb", "$@le"]
    text = "a bo\u0308m\u0301b, ano"
    assert marked(measure(opened("banned", words=["bomb"], ignore_marks=True), text), text) == ["bo\u0308m\u0301b"]
    assert measure(opened("banned", words=["bomb"]), text).value == 0
    assert measure(opened("banned", words="ano"), "año").value == 0


def test_saturation_counts_hits() -> None:
    cost = opened("banned", words=["bad", "worse"], saturation=4)
    counted = [measure(cost, "bad " * count).value for count in range(7)]
    assert counted == [0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_of_phrases_that_begin_together_the_longest_is_the_hit() -> None:
    cost = opened("banned", words=["red", "red lamp", "red lamp shade"], saturation=10)
    text = "a red lamp and a red lamp shade and red"
    found = measure(cost, text)
    assert marked(found, text) == ["red lamp", "red lamp shade", "red"] and found.value == pytest.approx(0.3)


def test_patterns_see_the_folded_text_and_are_marked_in_the_written_one() -> None:
    text = "call ５５５-1234 or В\u200bOMB99"
    cost = opened("banned", patterns=[r"\d{3}-\d{4}", r"BOMB\d+"])
    assert marked(measure(cost, text), text) == ["５５５-1234", "В\u200bOMB99"]
    assert measure(opened("banned", patterns="x*"), "none of it").value == 0  # an empty match is none


def test_a_pattern_that_backtracks_without_end_ends_training_and_not_the_machine() -> None:
    start = time.perf_counter()
    with pytest.raises(DataError, match="took more than 1 s"):
        measure(opened("banned", patterns=r"(a|aa)+b"), "a" * 5000)
    with pytest.raises(DataError, match="took more than 1 s"):
        measure(opened("format", pattern=r"(a|aa)+b"), "a" * 5000)
    assert time.perf_counter() - start < 15


def test_a_pattern_that_is_none_is_refused_in_the_recipe() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        opened("banned", patterns=["(unclosed"])
    with pytest.raises(ValidationError, match="nothing is banned"):
        opened("banned")
    with pytest.raises(InputError, match="no character that could be seen"):
        opened("banned", words=["\u200b"])


def test_words_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffbad  # and why\n\n# nothing\nvery bad\n", encoding="utf-8")
    text = "bad, very bad"
    assert marked(measure(opened("banned", lexicon=str(path), words=["good"]), text), text) == ["bad", "very bad"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        opened("banned", lexicon=str(path))
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="no words"):
        opened("banned", lexicon=str(path))
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        opened("banned", lexicon=str(tmp_path / "nowhere.txt"))


ALPHABET = st.text(alphabet=st.sampled_from("aBcß ﬁé\u0301\u200bо𝐛한ᄒ\u1161ｋ漢_-#İ"), max_size=30)


@given(ALPHABET)
def test_every_folded_character_has_a_place_in_the_text(text: str) -> None:
    folding = Folding()
    folded = folding(text)
    for place in range(len(folded)):
        ((start, end),) = folding.places(text, [(place, place + 1)])
        assert 0 <= start < end <= len(text)
        assert folded[place] in folding(text[start:end])


@given(ALPHABET, ALPHABET)
def test_a_word_is_found_between_any_texts(before: str, after: str) -> None:
    text = f"{before} zebra {after}"
    measured = measure(opened("banned", words=["zebra"]), text)
    assert measured.value == 1 and "zebra" in "".join(marked(measured, text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("I’m sorry but no", 1),
        ("As an AI language model I have no lamp.", 1),
        ("The lamp cannot be turned off.", 0),
        ("The lamp is red. " * 30 + "I cannot say more.", 0),  # too late to be a refusal
        ("", 0),
    ],
)
def test_a_refusal_begins_a_completion(text: str, value: float) -> None:
    assert measure(opened("refusal"), text).value == value


def test_a_refusal_that_begins_in_time_is_one_to_its_end_and_what_cannot_be_seen_does_not_count() -> None:
    cost = opened("refusal", within_characters=20)
    before = "Let me think of it: "  # of 20 characters: the phrase begins behind them
    assert measure(cost, f"{before}I cannot say.").value == 0
    late = f"{before[:15]} I cannot say."
    assert marked(measure(cost, late), late) == ["I cannot"]
    # The place where the text is no longer looked at is not the end of a word.
    assert measure(cost, "Of aircraft, as an aircraft mechanic.").value == 0
    for within in range(1, 40):
        assert measure(opened("refusal", within_characters=within), "Flying as an aircraft mechanic").value == 0
    hidden = "\u200b" * 300 + "I cannot say."
    assert marked(measure(cost, hidden), hidden) == ["I cannot"]


def test_what_is_expected_is_certain_where_no_watched_tokens_were_drawn() -> None:
    """A word in other tokens, in letters that look alike, or a pattern: the watch gave it no probability."""
    cost = opened("banned", words=["lamp"], patterns=["r+ed"])
    known = {"expected": {"banned": 0.25}}
    drawn = {**known, "drawn": frozenset({"banned"})}
    assert measure(cost, "a chair", **known).expected == 0.25
    assert measure(cost, "a chair", **drawn).expected == 0.25  # the tokens of a longer word, it may be
    assert measure(cost, "a lamp", **drawn).expected == 0.25
    for text in ("a lamp", "a l\u0430mp", "a rrred chair"):
        assert measure(cost, text, **known).expected == 1.0
    assert measure(cost, "a lamp").expected is None


def test_other_phrases_refuse_too() -> None:
    cost = opened("refusal", phrases=["das geht nicht"], within_characters=40)
    text = "Leider: das geht nicht."
    assert marked(measure(cost, text), text) == ["das geht nicht"]
    assert measure(cost, "I cannot say.").value == 0


@pytest.mark.parametrize(
    "text", ["ab " * (LONG // 3), "é" * LONG, "傻" * LONG, "a\u0301" * (LONG // 2), "\u200b" * LONG]
)
def test_100_000_characters_take_no_time(text: str) -> None:
    start = time.perf_counter()
    measure(opened("banned", words=["ab", "xyz", "é", "傻瓜", "ab ab"], patterns=[r"x+y"], saturation=9), text)
    measure(opened("refusal"), text)
    assert time.perf_counter() - start < 10
