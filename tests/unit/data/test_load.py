from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.data.load import consulted, load_demonstrations, load_pairs, load_prompts, load_texts
from prefopt.data.splits import prompt_key
from prefopt.errors import DataError
from prefopt.recipe.schema import DataSpec
from prefopt.records import Demonstration, Message, PreferencePair


def pair(number: int, chosen: str = "yes", rejected: str = "no", **more: object) -> dict[str, object]:
    return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected, **more}


def keys(records: list) -> set[str]:
    return {prompt_key(record if isinstance(record, tuple) else record.prompt) for record in records}


def test_every_row_read_is_kept_or_counted(jsonl):
    rows = [pair(number) for number in range(50)]
    rows += [pair(1), pair(2, " YES "), pair(3, "same", "same"), pair(4, "")]
    loaded = load_pairs(("a",), {"a": DataSpec(path=jsonl(*rows))}, 17)
    report = loaded.report.to_json()
    assert report["dropped"] == {"chosen_equals_rejected": 1, "empty_completion": 1, "exact_duplicate": 2}
    assert report["rows_read"] == 54 == report["kept_train"] + report["kept_eval"] + 4
    assert (len(loaded.train), len(loaded.eval)) == (report["kept_train"], report["kept_eval"])
    assert 0 < len(loaded.eval) < 20
    assert report["sources"]["a"]["format"] == "preference"
    assert report["sources"]["a"]["prompts_train"] + report["sources"]["a"]["prompts_eval"] == 50
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_weights_sources_and_ids(jsonl):
    data = {"a": DataSpec(path=jsonl(pair(1, weight=3), pair(2, source="web", id="x")), weight=0.5, eval_fraction=0)}
    first, second = load_pairs(("a",), data, 17).train
    assert (first.weight, first.source, first.id) == (1.5, "a", "a/1")
    assert (second.weight, second.source, second.id) == (0.5, "web", "x")


class TestSplit:
    def test_by_prompt_not_by_row_and_stable_when_rows_come_and_move(self, jsonl):
        rows = [pair(number % 40, f"yes {number}") for number in range(120)]
        before = load_pairs(("a",), {"a": DataSpec(path=jsonl(*rows))}, 17)
        more = [pair(number) for number in range(40, 60)] + rows[::-1]
        after = load_pairs(("a",), {"a": DataSpec(path=jsonl(*more, name="more.jsonl"))}, 17)
        assert not keys(before.train) & keys(before.eval)
        assert keys(before.train) <= keys(after.train) and keys(before.eval) <= keys(after.eval)

    def test_no_prompt_is_on_both_sides_across_the_recipe_whoever_loads_it(self, jsonl):
        data = {
            "pairs": DataSpec(path=jsonl(*(pair(n) for n in range(30)), name="p.jsonl"), eval_fraction=0.3),
            "few": DataSpec(path=jsonl(pair(40), pair(1), name="f.jsonl"), eval_fraction=0.01),
            "demos": DataSpec(
                path=jsonl(*({"prompt": f" question  {n}?", "completion": "x"} for n in range(60)), name="d.jsonl"),
                eval_fraction=0.1,
            ),
            "all": DataSpec(
                path=jsonl(*({"prompt": f"QUESTION {n}?", "completion": "y"} for n in range(60)), name="n.jsonl"),
                eval_fraction=0,
            ),
        }
        loaded = [load_pairs(("pairs",), data, 17), load_pairs(("few",), data, 17), load_prompts(("all",), data, 17)]
        loaded += [load_demonstrations((name,), data, 17) for name in ("demos", "all")]
        loaded += [load_demonstrations(("all", "pairs"), data, 17)]
        train = set().union(*(keys(one.train) for one in loaded))
        held = set().union(*(keys(one.eval) for one in loaded))
        assert held and train and not held & train
        alone = loaded[4]
        assert alone.eval == [] and alone.report.dropped == {"prompt_held_out_by_another_data_set": len(held)}
        assert consulted(("all",), data) == ("pairs", "few", "demos")

    def test_a_single_prompt_is_never_held_out_and_two_are_shared(self, jsonl):
        one = load_pairs(("a",), {"a": DataSpec(path=jsonl(pair(1), pair(1, "y")), eval_fraction=0.9)}, 17)
        assert (len(one.train), len(one.eval)) == (2, 0)
        two = load_pairs(("a",), {"a": DataSpec(path=jsonl(pair(1), pair(2)), eval_fraction=0.01)}, 17)
        assert (len(two.train), len(two.eval)) == (1, 1)

    def test_the_seed_chooses_and_the_kind_of_load_does_not(self, jsonl):
        data = {"a": DataSpec(path=jsonl(*(pair(number) for number in range(100))))}
        held = keys(load_pairs(("a",), data, 17).eval)
        assert held == keys(load_demonstrations(("a",), data, 17).eval) == keys(load_prompts(("a",), data, 17).eval)
        assert held == {prompt_key(text[:-1]) for text in load_texts(("a",), data, 17).eval}
        assert held != keys(load_pairs(("a",), data, 18).eval)


class TestContradictions:
    def test_they_are_kept_and_reported_with_ids(self, jsonl):
        rows = [pair(1, "A", "B"), pair(2), pair(1, "b", "a ", id="swapped"), pair(1, "B", "C")]
        report = load_pairs(("a",), {"a": DataSpec(path=jsonl(*rows), eval_fraction=0)}, 17).report
        assert report.contradictions == (("a/1", "swapped"),)
        assert report.to_json()["contradictory_ids"] == [["a/1", "swapped"]] and report.kept_train == 4

    def test_probability_says_who_is_preferred_and_ties_contradict_nobody(self, jsonl):
        rows = [
            pair(1, "A", "B"),
            pair(1, "B", "A", probability=0.2),
            pair(1, "B", "A", probability=0.5, annotator="x"),
        ]
        assert load_pairs(("a",), {"a": DataSpec(path=jsonl(*rows))}, 17).report.contradictions == ()

    def test_pairs_that_differ_in_case_only_do_not_contradict_themselves(self, jsonl):
        data = {"a": DataSpec(path=jsonl(pair(1, "Yes", "yes")))}
        assert load_pairs(("a",), data, 17).report.contradictions == ()


def test_votes_of_several_annotators_are_no_duplicates(jsonl):
    rows = [pair(1, annotator="x"), pair(1, annotator="y"), pair(1, annotator="y")]
    report = load_pairs(("a",), {"a": DataSpec(path=jsonl(*rows))}, 17).report
    assert report.kept_train == 2 and report.dropped == {"exact_duplicate": 1}


class TestKinds:
    def test_demonstrations_from_pairs_take_the_preferred_answer(self, jsonl):
        rows = [pair(1), pair(2, probability=0.1, id="x"), pair(1, "yes", "other")]
        loaded = load_demonstrations(("a",), {"a": DataSpec(path=jsonl(*rows), eval_fraction=0)}, 17)
        assert [(item.completion, item.id) for item in loaded.train] == [("yes", "a/1"), ("no", "x")]
        assert loaded.report.dropped == {"exact_duplicate": 1}

    def test_prompts_come_from_anything_that_has_them_and_each_once(self, jsonl):
        turns = [{"role": "user", "content": "Question 1?"}]
        answer = {"role": "assistant", "content": "a"}
        data = {
            "a": DataSpec(path=jsonl(pair(1), name="a.jsonl")),
            "b": DataSpec(path=jsonl({"messages": turns}, {"messages": [*turns, answer]}, name="b.jsonl")),
            "c": DataSpec(path=jsonl({"prompt": "Question 1?", "lang": "en"}, {"prompt": "New"}, name="c.jsonl")),
        }
        loaded = load_prompts(("a", "b", "c"), data, 17)
        assert {message.content for prompt in loaded.train + loaded.eval for message in prompt} == {
            "Question 1?",
            "New",
        }
        assert loaded.report.dropped == {"exact_duplicate": 3}

    def test_texts_are_strings_or_conversations(self, jsonl):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        data = {
            "t": DataSpec(path=jsonl({"text": "Once"}, {"text": "once "}, name="t.jsonl"), eval_fraction=0),
            "m": DataSpec(path=jsonl({"messages": turns}, name="m.jsonl"), eval_fraction=0),
            "p": DataSpec(path=jsonl(pair(1), name="p.jsonl"), eval_fraction=0),
        }
        loaded = load_texts(("t", "m", "p"), data, 17)
        conversation = (Message("user", "q"), Message("assistant", "a"))
        assert loaded.train == ["Once", conversation, (Message("user", "Question 1?"), Message("assistant", "yes"))]

    def test_conversations_without_an_answer_are_no_demonstrations(self, jsonl):
        turns = [{"role": "user", "content": "q"}]
        rows = [{"messages": turns}, {"messages": [*turns, {"role": "assistant", "content": "a"}]}]
        loaded = load_demonstrations(("a",), {"a": DataSpec(path=jsonl(*rows), eval_fraction=0)}, 17)
        assert len(loaded.train) == 1 and loaded.report.dropped == {"no_answer": 1}

    @pytest.mark.parametrize("load", [load_pairs, load_demonstrations, load_prompts])
    def test_texts_cannot_stand_for_what_needs_prompts(self, jsonl, load):
        for form in ("auto", "text"):
            with pytest.raises(DataError, match=r"data set 'a': .*(fits none of the formats|cannot be used here)"):
                load(("a",), {"a": DataSpec(path=jsonl({"text": "x"}), format=form)}, 17)


class TestNoUsableRows:
    def test_an_empty_source(self, jsonl):
        with pytest.raises(DataError, match=r"0 usable rows of pairs in 'a' \(.*jsonl\): 0 rows read"):
            load_pairs(("a",), {"a": DataSpec(path=jsonl())}, 17)

    def test_nothing_left_after_dropping_says_why(self, jsonl):
        rows = [pair(1, "x", "x"), pair(2, "x", "x"), pair(3, "")]
        with pytest.raises(DataError, match="3 rows read; dropped: chosen_equals_rejected 2, empty_completion 1"):
            load_pairs(("a",), {"a": DataSpec(path=jsonl(*rows))}, 17)

    def test_an_unknown_name(self):
        with pytest.raises(DataError, match=r"no data set 'b' in the recipe.*it has: a"):
            load_pairs(("b",), {"a": DataSpec(path="toy")}, 17)


def test_a_wrong_row_is_named_with_the_data_set_the_file_and_the_line(jsonl):
    path = jsonl(pair(1), pair(2, chosen=None))
    with pytest.raises(DataError) as caught:
        load_pairs(("mine",), {"mine": DataSpec(path=path)}, 17)
    assert str(caught.value).startswith(
        f"data set 'mine': {path}, line 2: column 'chosen': expected a value, found null"
    )
    assert caught.value.exit_code == 2


def test_columns_are_renamed_first(jsonl):
    path = jsonl({"q": "Hi", "good": "a", "bad": "b", "prompt_id": 3})
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "id": "prompt_id"}
    (found,) = load_pairs(("a",), {"a": DataSpec(path=path, columns=columns)}, 17).train
    assert (found.prompt[0].content, found.chosen, found.rejected, found.id) == ("Hi", "a", "b", "3")


class TestToy:
    def test_each_loader_takes_its_table_and_the_spec_may_choose_another(self):
        data = {
            "toy": DataSpec(path="toy", max_samples=40),
            "preferences": DataSpec(path="toy", max_samples=40, name="preferences", noise=0.0),
        }
        assert all(isinstance(item, PreferencePair) for item in load_pairs(("toy",), data, 17).train)
        assert all(isinstance(item, Demonstration) for item in load_demonstrations(("toy",), data, 17).train)
        report = load_texts(("toy",), data, 17).report.to_json()
        assert report["rows_read"] == 40 and report["sources"]["toy"]["format"] == "toy"
        chosen = {item.completion for item in load_demonstrations(("preferences",), data, 17).train}
        assert chosen <= {item.chosen for item in load_pairs(("preferences",), data, 17).train}

    def test_the_recipe_s_seed_makes_the_rows_unless_the_data_set_has_its_own(self):
        def chosen(seed: int, own: int | None) -> list[str]:
            spec = DataSpec(path="toy", name="preferences", max_samples=20, seed=own, eval_fraction=0)
            return [item.chosen for item in load_pairs(("toy",), {"toy": spec}, seed).train]

        assert chosen(1, None) == chosen(2, 1) == chosen(1, 1) != chosen(2, None)

    def test_an_unknown_table(self):
        with pytest.raises(DataError, match=r"data set 'toy': the toy world has no 'stories'.*corpus, demonstrations"):
            load_pairs(("toy",), {"toy": DataSpec(path="toy", name="stories")}, 17)

    def test_a_corpus_holds_no_pairs(self):
        with pytest.raises(DataError, match="data set 'toy' holds no preference pairs"):
            load_pairs(("toy",), {"toy": DataSpec(path="toy", name="corpus", max_samples=3)}, 17)


def test_loading_imports_no_torch(jsonl):
    code = (
        "import sys; from prefopt.data import load, templates; from prefopt.recipe.schema import DataSpec;"
        f"load.load_pairs(('a',), {{'a': DataSpec(path={jsonl(pair(1))!r})}}, 1);"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_log_says_what_is_read_and_what_came_of_it(jsonl):
    lines: list[str] = []
    path = jsonl(pair(1), pair(1))
    load_pairs(("a",), {"a": DataSpec(path=path)}, 17, lines.append)
    assert lines == [
        f"reading {path}",
        "a: 1 pairs to train on, 0 held out; 2 rows read; dropped: exact_duplicate 1",
    ]
