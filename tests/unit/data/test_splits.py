from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.splits import held_out, identity, position, prompt_key
from prefopt.records import Message

keys = st.lists(st.text(max_size=8), max_size=40)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**31)


@given(keys, fractions, seeds)
def test_order_and_repetition_do_not_matter(keys, fraction, seed):
    assert held_out(keys, fraction, seed) == held_out(list(reversed(keys)) + keys, fraction, seed)


@given(keys, fractions, seeds)
def test_of_two_or_more_prompts_at_least_one_is_on_each_side(keys, fraction, seed):
    held = held_out(keys, fraction, seed)
    assert held <= set(keys)
    assert (0 < len(held) < len(set(keys))) if len(set(keys)) > 1 else not held


@given(keys, seeds)
def test_a_fraction_of_zero_holds_out_nothing(keys, seed):
    assert held_out(keys, 0.0, seed) == frozenset()


@given(st.integers(0, 500), seeds)
def test_adding_rows_moves_no_prompt_to_the_other_side(more, seed):
    first = [f"prompt {number}" for number in range(500)]
    grown = first + [f"new {number}" for number in range(more)]
    before, after = held_out(first, 0.1, seed), held_out(grown, 0.1, seed)
    assert before == after & set(first)


def test_the_share_is_what_was_asked_for_and_seeds_differ():
    first = [f"prompt {number}" for number in range(20_000)]
    held = held_out(first, 0.1, 17)
    assert abs(len(held) / 20_000 - 0.1) < 0.008  # 4 standard deviations
    assert abs(len(held & held_out(first, 0.1, 18)) / 20_000 - 0.01) < 0.003
    assert all(0 <= position(key, 17) < 0.1 for key in held)


@settings(max_examples=50)
@given(st.text(max_size=20))
def test_texts_that_differ_in_form_only_are_the_same(text):
    assert identity(text) == identity(f"  {text}\n")
    assert identity(text, "") != identity(text)


def test_case_spacing_and_compatibility_forms_make_no_difference_but_roles_and_order_do():
    same = ["Où est  le\tCAFÉ ﬁn?", "où est le cafe\u0301 fin?"]
    assert len({prompt_key((Message("user", text),)) for text in same}) == 1
    a, b = Message("user", "a"), Message("user", "b")
    assert len({prompt_key((a, b)), prompt_key((b, a)), prompt_key((Message("system", "a"), b))}) == 3
    assert identity("a b") != identity("a", "b")
