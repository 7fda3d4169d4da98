"""The rollout microscope: every token is there, harmless, in the right shade, and the terms add up."""

import json
import math
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.report import render
from prefopt.report.microscope import (
    MEASURES,
    MOST_EPISODES,
    MOST_TOKENS,
    STEPS,
    Scale,
    microscope_of,
    read_close_ups,
    visible,
)
from tests.run_folder import HOSTILE, WITH_PPO, RunFolder, close_up
from tests.unit.report.test_render import Page

KL, ADVANTAGE, VALUE, ENTROPY = MEASURES
AMOUNT = re.compile(r'<td class="number">([^<]*)</td>')


def scope(*rows):
    return microscope_of("ppo", read_close_ups(rows, pytest.fail))


def rendered(folder, rows, **options):
    run = RunFolder(folder / "run", recipe=WITH_PPO, **options)
    run.ppo(rows, rollouts=1)  # one point gives no plot
    text = render(run.run.root).read_text(encoding="utf-8")
    return text, Page(text)


def tokens_of(page):
    return [attrs for tag, attrs in page.elements if tag == "label" and attrs.get("class", "").startswith("token")]


def amount(text):
    return Decimal(text.replace("\u2212", "-").replace("\u2009", ""))


def test_every_token_has_its_text_and_its_five_numbers(tmp_path):
    row = close_up(["I", " am", " here"])
    row["tokens"][1] = {"text": " am", "kl": 1.5, "advantage": -0.25, "value": 0.125, "entropy": 2.0, "logp": -0.5}
    text, page = rendered(tmp_path, [row])
    assert "microscope" in page.ids and "1 episode of rollout 19." in page.text
    tokens = tokens_of(page)
    assert len(tokens) == 3
    assert tokens[1]["title"] == (
        "KL 1.500 · advantage \u22120.250 · value 0.125 · entropy 2.000 · log-probability \u22120.500"
    )
    said = re.search(r'<div class="tokens".*?</div>', text, re.DOTALL)
    assert "".join(re.sub("<[^>]*>", "", said.group())) == "I am here"


def test_the_switch_and_the_tokens_can_be_reached_by_keys(tmp_path):
    _, page = rendered(tmp_path, None)
    radios = [attrs for tag, attrs in page.elements if tag == "input"]
    switch = [attrs for attrs in radios if "by" in attrs.get("class", "").split()]
    labels = [attrs["for"] for tag, attrs in page.elements if tag == "label" and "for" in attrs]
    assert [attrs["id"] for attrs in switch] == labels and len(set(labels)) == 4
    assert [("checked" in attrs) for attrs in switch] == [True, False, False, False]
    assert len({attrs["name"] for attrs in switch}) == 1
    # One group an episode is one stop of the tab key.
    groups = [attrs["name"] for attrs in radios if attrs not in switch]
    assert [groups.count(name) for name in dict.fromkeys(groups)] == [5, 5, 5]
    assert len(page.ids) == len(set(page.ids))


def test_two_stages_have_switches_of_their_own(tmp_path):
    folder = RunFolder(tmp_path / "run", recipe=WITH_PPO)
    rows = folder.ppo(rollouts=1).read_text()
    folder.train("dpo")
    (folder.folder("dpo") / "microscope.jsonl").write_text(rows)
    page = Page(render(folder.run.root).read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    names = [attrs["name"] for tag, attrs in page.elements if tag == "input" and "id" in attrs]
    assert [names.count(name) for name in dict.fromkeys(names)] == [4, 4]


AMOUNTS = st.floats(-500, 500, allow_nan=False)


@given(st.dictionaries(st.sampled_from(["score", "missing_eos", "kl", "length_penalty"]), AMOUNTS, min_size=1))
def test_the_shown_terms_add_up_to_the_shown_reward(terms):
    (episode,) = scope(close_up(["a"], terms=terms)).episodes
    assert len(episode.terms) == len(terms)
    assert sum(amount(value) for _, value in episode.terms) == amount(episode.reward)
    assert math.isclose(float(amount(episode.reward)), sum(terms.values()), abs_tol=0.0005 * (len(terms) + 1))


def test_the_terms_are_on_the_page_in_their_order(tmp_path):
    text, page = rendered(tmp_path, [close_up(["a"], terms={"kl": -0.25, "missing_eos": -1.0, "score": 2.0})])
    account = text[text.index('<div class="account">') :]
    assert AMOUNT.findall(account)[:4] == ["2.000", "\u22121.000", "\u22120.250", "0.750"]
    places = [page.text.index(word) for word in ("score, scaled", "no end token", "price of the KL")]
    assert places == sorted(places)
    assert "ended by itself" in page.text and "cut at the length limit" not in page.text


def test_hostile_tokens_stay_text(tmp_path):
    rows = [close_up([*HOSTILE, "</script>", '" onmouseover="alert(9)', "\u202e", "\U0001f469\u200d\U0001f4bb"])]
    rows[0] |= {"prompt": HOSTILE[0], "terms": {HOSTILE[0]: 1.0}}
    text, page = rendered(tmp_path, rows)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    scoped = text[text.index('id="microscope"') :]
    shown = Page(f"<div>{scoped[scoped.index('>') + 1 : scoped.index('</section>')]}</div>")
    for said in (*HOSTILE[:-1], "</script>", '" onmouseover="alert(9)', "\U0001f469\u200d\U0001f4bb"):
        assert said in shown.text, said
    assert '<bdi class="control" title="U+202E"' in scoped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", " the"),
        (" ", "␣"),
        ("   ", "␣␣␣"),
        ("\n", "↵\n"),
        (" \n\n", " ↵\n↵\n"),
        ("\t", "⇥\t"),
        ("\r\n", "␍↵\n"),
        ("", "∅"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_what_has_no_ink_gets_a_symbol(text, shown):
    assert visible(text) == shown


@given(st.floats(1e-6, 1e6), st.lists(st.floats(-1e6, 1e6), min_size=2))
def test_shades_follow_the_values_and_mirror_at_zero(limit, values):
    scale, rows = Scale(KL, limit), sorted(values)
    levels = [int(scale.shade(value)[1:]) for value in rows]
    assert levels == sorted(levels) and set(levels) <= set(range(2 * STEPS + 1))
    assert [int(scale.shade(-value)[1:]) for value in rows] == [2 * STEPS - level for level in levels]
    assert scale.shade(0.0) == f"k{STEPS}" and scale.shade(limit) == scale.shades[-1]
    assert scale.shade(-limit) == scale.shades[0]


def test_entropy_has_one_direction():
    scale = Scale(ENTROPY, 2.0)
    assert [scale.shade(value) for value in (-1.0, 0.0, 0.5, 1.0, 2.0, 9.0)] == ["e0", "e0", "e1", "e2", "e4", "e4"]
    assert scale.ends == ("0", "2.000 or more") and len(scale.shades) == STEPS + 1


def test_an_outlier_does_not_make_the_others_pale():
    row = close_up(["a"] * 100)
    for place, token in enumerate(row["tokens"]):
        token["kl"] = 1000.0 if place == 50 else 0.5 * (-1) ** place
    found = scope(row)
    assert found.scales[0].limit == 0.5 and found.scales[0].ends == ("\u22120.500 or less", "0.500 or more")
    assert {token.classes.split()[0] for token in found.episodes[0].tokens} == {"k0", "k8"}


def test_all_zeros_have_the_middle_shade():
    row = close_up(["a", "b"])
    for token in row["tokens"]:
        token |= dict.fromkeys(("kl", "advantage", "value", "entropy", "logp"), 0.0)
    found = scope(row)
    assert {token.classes for token in found.episodes[0].tokens} == {"k4 a4 v4 e0"}
    assert found.scales[0].ends == ("0", "0 everywhere")


@pytest.mark.parametrize("rows", [None, []], ids=["no file", "no rows"])
def test_without_close_ups_the_page_is_as_before(tmp_path, rows):
    folder = RunFolder(tmp_path / "run", recipe=WITH_PPO)
    path = folder.ppo(rows or [], rollouts=1)
    if rows is None:
        path.unlink()
    page = Page(render(folder.run.root).read_text(encoding="utf-8"))
    assert "microscope" not in page.ids and "warnings" not in page.ids
    assert not [attrs for tag, attrs in page.elements if tag == "input"]


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_any_number_of_tokens_renders(tmp_path, count):
    _, page = rendered(tmp_path, [close_up(["x"] * count)])
    assert len(tokens_of(page)) == count
    assert f"{count} {'token' if count == 1 else 'tokens'}" in page.text
    assert ("no tokens" in page.text) == (count == 0)


def test_what_is_left_out_is_counted(tmp_path):
    rows = [close_up(["x"] * (MOST_TOKENS + 5))] + [close_up(["x"])] * MOST_EPISODES
    _, page = rendered(tmp_path, rows)
    assert len(tokens_of(page)) == MOST_TOKENS + MOST_EPISODES - 1
    assert "5 more tokens are in ppo's microscope.jsonl" in page.text and f"{MOST_TOKENS + 5} tokens" in page.text


TOKEN = {"text": "a", "kl": 0.0, "advantage": 0.0, "value": 0.0, "entropy": 0.0, "logp": 0.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": None}, "None is not a list"),
        ({"tokens": ["a"]}, "'a' is not a mapping"),
        ({"tokens": [{**TOKEN, "kl": None}]}, "None is not a number that can be shown"),
        ({"tokens": [{**TOKEN, "text": 3}]}, "3 is not a text"),
        ({"tokens": [{**TOKEN, "value": "7"}]}, "'7' is not a number that can be shown"),
        ({"tokens": [{"text": "a"}]}, "'kl' is missing"),
        ({"terms": [1]}, "[1] is not a mapping"),
        ({"score": 10**400}, "a number that is too large"),
        ({"rollout": "x"}, "'x' is not a number"),
    ],
)
def test_a_damaged_episode_is_warned_about_and_the_others_are_shown(tmp_path, change, said):
    rows = [close_up(["sound"]), close_up(["broken"], **change)]
    folder = RunFolder(tmp_path / "run", recipe=WITH_PPO)
    folder.ppo(rows[:1], rollouts=1)
    path = folder.folder("ppo") / "microscope.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(render(folder.run.root).read_text(encoding="utf-8"))
    assert "stage ppo: microscope.jsonl" in page.text and said in page.text
    assert len(tokens_of(page)) == 1
