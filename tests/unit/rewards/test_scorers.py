"""Scorers that need no model: sums that a hand can check, and files that are refused by line."""

from pathlib import Path
from typing import get_args

import pytest

from prefopt.data.toy import world
from prefopt.errors import DataError, EnvironmentFault
from prefopt.recipe.scorers import GoldTerm
from prefopt.records import Message, Prompt
from prefopt.rewards.scorers import GoldScorer, GoldTermsScorer, LexiconScorer

PROMPT: Prompt = (Message("user", "how was it?"),)


def lexicon(directory: Path, text: str) -> LexiconScorer:
    path = directory / "words.txt"
    path.write_text(text, encoding="utf-8")
    return LexiconScorer(path)


def values(scorer: LexiconScorer, *texts: str) -> list[float]:
    return [score.value for score in scorer.score([PROMPT] * len(texts), texts)]


def test_a_text_is_worth_the_sum_of_its_words(tmp_path: Path) -> None:
    scorer = lexicon(tmp_path, "good\t1.9\t0.9\t[2, 1]\n\nbad\t-2.5\ncan't\t-0.5\n")
    found = values(scorer, "Good, GOOD; bad.", "it can't be good", "", "goodness", "123 — ü")
    assert found == pytest.approx([1.9 + 1.9 - 2.5, -0.5 + 1.9, 0.0, 0.0, 0.0])
    assert scorer.name == "words.txt"


def test_words_are_found_whatever_their_case_and_the_last_line_of_a_word_counts(tmp_path: Path) -> None:
    assert values(lexicon(tmp_path, "Good\t1\nGOOD\t2\n"), "good") == [2.0]


@pytest.mark.parametrize("line", ["bad", "bad 1.0", "bad\tlow", "bad\t", "bad\tnan", "bad\tinf"])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"words\.txt:3"):
        lexicon(tmp_path, f"good\t1.0\n\n{line}\nfine\t1.0\n")


def test_a_file_that_cannot_be_a_word_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no words"):
        lexicon(tmp_path, "\n \n")
    (tmp_path / "latin").write_bytes(b"caf\xe9\t1.0\n")
    with pytest.raises(DataError, match="UTF-8"):
        LexiconScorer(tmp_path / "latin")
    with pytest.raises(EnvironmentFault, match="missing"):
        LexiconScorer(tmp_path / "missing")


@pytest.mark.shared
def test_the_vader_list_tells_praise_from_complaint(shared_data: Path) -> None:
    scorer = LexiconScorer(shared_data / "vader-sentiment" / "vader_lexicon.txt")
    praise, complaint = values(scorer, "a wonderful, happy story", "a horrible, sad mess")
    assert praise > 3 and complaint < -3


def test_gold_is_the_world_itself() -> None:
    rows = world.demonstrations(8, 3)
    found = GoldScorer().score([row.prompt for row in rows], [row.completion for row in rows])
    assert [score.value for score in found] == [world.gold(row.prompt, row.completion) for row in rows]


def test_gold_without_a_term_is_what_is_left_of_the_sum() -> None:
    rows = world.preferences(200, 3)
    prompts, texts = [row.prompt for row in rows], [row.chosen for row in rows]
    texts[0] = "the code is zk-41."
    found = GoldTermsScorer(["forbidden", "detail"]).score(prompts, texts)
    for prompt, text, score in zip(prompts, texts, found, strict=True):
        terms = world.gold_terms(prompt, text)
        assert score.value == pytest.approx(world.gold(prompt, text) - terms["forbidden"] - terms["detail"])
    told = GoldTermsScorer(["forbidden"]).score(prompts[:1], texts[:1])[0].value
    assert told - world.gold(prompts[0], texts[0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no term 'bound to fail'"):
        GoldTermsScorer(["bound to fail"])


def test_recipes_may_leave_out_every_term_that_gold_has() -> None:
    assert set(get_args(GoldTerm)) == world.gold_terms(PROMPT, "").keys() - {"bound"}
