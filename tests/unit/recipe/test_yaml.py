import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.errors import RecipeError
from prefopt.recipe.yaml import MAX_BYTES, parse, parse_value, read_text


def only_problem(text):
    document = parse(text, "r.yaml")
    assert len(document.problems) == 1, document.problems
    return document.problems[0][1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1e5", 1e5),
        ("5.0e-7", 5e-7),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("0x10", 16),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("", None),
        ("~", None),
        ("null", None),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("[1, a, {b: 2.5}]", [1, "a", {"b": 2.5}]),
    ],
)
def test_plain_values_follow_yaml_1_2(text, value):
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


def test_leading_zero_is_refused_with_both_readings():
    problem = only_problem("a: 1\nb: 010\n")
    assert problem.where == "r.yaml:2"
    assert "write 10," in problem.remedy and "'010'" in problem.remedy


def test_duplicate_key_names_both_lines_and_keeps_the_first():
    document = parse("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "r.yaml")
    ((path, problem),) = document.problems
    assert path == ("b", "c")
    assert problem.where == "r.yaml:5" and "line 3" in problem.message
    assert document.tree["b"] == {"c": 1, "d": 2}


def test_lines_of_keys_and_items():
    places = parse("a: 1\nb:\n  c:\n    - x\n    - y\n", "r.yaml").places
    assert places.where(("b", "c", 1)) == "r.yaml:5"
    assert places.where(("b", "c", "not there")) == "r.yaml:3"
    assert places.where(("zzz",)) == "r.yaml"


def test_aliases_and_merges_are_values():
    document = parse("a: &x {p: 1, q: [1, 2]}\nb: *x\nc: {<<: *x, p: 5}\n", "r.yaml")
    assert document.problems == ()
    assert document.tree["b"] == {"p": 1, "q": [1, 2]}
    assert document.tree["c"] == {"p": 5, "q": [1, 2]}
    document.tree["b"]["q"].append(3)
    assert document.tree["a"]["q"] == [1, 2], "aliases must not share state"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a: 1\n\tb: 2\n", 2, "tab"),
        ("a:\n\tb: 2\n", 2, "tab"),
        ("a: b: c\n", 1, "second ':'"),
        ("a: [1, 2\nb: 3\n", 2, "not closed"),
        ("a: {b: ${X}}\n", 1, "not closed"),
        ("a: 1\n--- \nb: 2\n", 2, "second YAML document"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "tag"),
        ("a: *nowhere\n", 1, "not defined"),
        ("a: &a [1, *a]\n", 1, "contains itself"),
        ("? [a, b]\n: 1\n", 1, "key must be text"),
        ("a: 1\nb: \x01\n", 2, "does not allow"),
    ],
)
def test_what_yaml_refuses_is_said_with_its_line(text, line, word):
    problem = only_problem(text)
    assert problem.where == f"r.yaml:{line}"
    assert word in problem.message


def test_unquoted_variable_in_braces_is_told_to_be_quoted():
    assert "quotes" in only_problem("a: {b: ${X}}\n").remedy


def bomb(levels):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(30), "a: " + "[" * 100_000, "a: " + "{b: " * 50_000, "a: [" + "1," * 400_000])
def test_hostile_files_are_refused_in_bounded_time(text):
    started = time.perf_counter()
    document = parse(text, "r.yaml")
    assert time.perf_counter() - started < 3
    assert not document.complete
    assert "more than" in document.problems[0][1].message or "deeper" in document.problems[0][1].message


def test_deep_nesting_through_aliases_is_refused():
    lines = ["a0: &a0 1"] + [f"a{n}: &a{n} [[[[[*a{n - 1}]]]]]" for n in range(1, 50)]
    assert "nested deeper" in only_problem("\n".join(lines)).message


def test_files(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf#!/usr/bin/env -S prefopt run\r\nname: x\r\n")
    assert parse(read_text(path), "r.yaml").tree == {"name": "x"}
    for content, word in [
        (b"a: 1\nb: caf\xe9\n", "r.yaml:2"),
        ("a: 1".encode("utf-16"), "UTF-16"),
        (b"#" * (MAX_BYTES + 1), "1 MB"),
    ]:
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=word):
            read_text(path)
    with pytest.raises(RecipeError, match="folder"):
        read_text(tmp_path)
    with pytest.raises(RecipeError, match="no such file"):
        read_text(tmp_path / "none.yaml")


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8),
)
trees = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcXYZ_-.1", min_size=1, max_size=5), inner),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_what_json_writes_is_read_back(tree):
    import json

    assert parse_value(json.dumps(tree, ensure_ascii=False)) == tree


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list("ab:-[]{}&*!|>'\"%@`,#? \n\t0123.e$~<\x00\x85é")), max_size=60))
def test_any_text_gives_a_document(text):
    document = parse(text, "r.yaml")
    assert isinstance(document.tree, dict)
    assert document.complete or document.problems
