from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.recipe.load import load
from prefopt.recipe.references import cycles, graph, needs, order


def test_needs_by_role(write, good):
    recipe = load(write(good)).recipe
    assert needs(recipe, "base") == {}
    assert needs(recipe, "sft") == {"model": ("base",)}
    assert needs(recipe, "dpo") == {"model": ("base",), "init": ("sft",)}
    assert needs(recipe, "eval") == {"model": ("base",), "policies": ("base", "sft", "dpo")}
    assert order(graph(recipe)) == ("base", "sft", "dpo", "eval")
    with pytest.raises(KeyError):
        needs(recipe, "nope")


def test_data_of_the_same_name_is_not_a_stage(write, good):
    recipe = load(write(good.replace("demos", "sft"))).recipe
    assert needs(recipe, "sft") == {"model": ("base",)}


def test_the_base_is_where_a_stage_starts_that_names_nothing(problems):
    recipe = "name: x\nmodel: {model_name_or_path: hub/m}\ndata: {d: {path: toy, name: preferences}}\n"
    found = problems(recipe + "stages: {dpo: {kind: dpo, data: d, init: base}}\n")["stages.dpo.init"]
    assert found.message == "'base' is no stage" and "leave 'init' out" in found.remedy


def test_order_keeps_the_file_where_it_can():
    assert order({"c": (), "a": (), "b": ("a",), "z": ("c",)}) == ("c", "a", "b", "z")


def test_cycles_are_paths_from_their_first_stage():
    assert cycles({"x": ("b",), "a": ("b",), "b": ("c",), "c": ("a",)}) == [("a", "b", "c", "a")]
    assert cycles({"a": ("a",)}) == [("a", "a")]
    assert cycles({"a": ("missing",)}) == []


def test_long_chains_do_not_exhaust_the_stack():
    chain = {f"s{n}": (f"s{n + 1}",) for n in range(5000)}
    assert cycles(chain) == []
    assert order(chain)[0] == "s4999"


names = st.sampled_from("abcdef")


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, st.lists(names, max_size=3).map(tuple), max_size=6))
def test_a_graph_has_an_order_or_a_cycle(needed):
    found = cycles(needed)
    for path in found:
        assert path[0] == path[-1]
        assert all(after in needed[before] for before, after in pairwise(path))
    if found:
        with pytest.raises(ValueError, match="cycle"):
            order(needed)
        return
    done = order(needed)
    assert sorted(done) == sorted(needed)
    for position, name in enumerate(done):
        assert set(needed[name]) & set(needed) <= set(done[:position])
