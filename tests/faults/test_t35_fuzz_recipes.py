"""Generated recipes and bytes: accepted, or refused in lines that name the place; in bounded time and memory."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from prefopt.cli.app import run_command
from prefopt.errors import RecipeError
from prefopt.recipe import load as loading
from prefopt.recipe.layout import stage_specs
from prefopt.recipe.schema import DataSpec, LoraSpec, ModelSpec, OptimisationSpec, Recipe
from tests.faults.conftest import Count
from tests.faults.fuzzing import ALL, FEW, SECONDS_OF_A_CASE, fuzz, require_one_line
from tests.unit.recipe.conftest import GOOD

TOKENS = [
    "", "~", "[]", "{}", "[[1]]", "{a: b}", "-1", "1e999", "010", "yes", "&x", "*x", "<<: *x", "${X}", "'", '"', "kind",
    "sft", "dpo", "eval", "base", "toy", "\n", "  ", "\t", ":", ", ", "9" * 50, ".nan", "é", "\x00", "!!int", "\ufeff",
    "\u2028", "\x1b[31m", "\u202e", "!!python/object/apply:os.system ['true']", "- ", "? ", "|", ">", "%", "@", "`",
]  # fmt: skip
NAMES = [
    "base",
    "sft",
    "dpo",
    "eval",
    "corpus",
    "prefs",
    "gold",
    "toy",
    "x y",
    "../x",
    "a\nb",
    "\x1b[31m",
    "é" * 300,
    "",
]


def values() -> SearchStrategy[Any]:
    plain = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(NAMES), st.text(max_size=12)
    )
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    )


def some_keys(spec: Any) -> SearchStrategy[dict[str, Any]]:
    known = st.sampled_from([*spec.model_fields, "betta", "lr", "unknown\nkey"])
    return st.dictionaries(known, values(), max_size=4)


def trees() -> SearchStrategy[dict[str, Any]]:
    """Recipes by the schema: real keys and kinds with any values, among good ones."""
    kinds = [
        some_keys(spec).map(lambda found, kind=kind: {"kind": kind, "data": "prefs", "init": "sft", **found})
        for kind, spec in stage_specs().items()
    ]
    good = {"sft": {"kind": "sft", "data": "prefs"}}
    return st.fixed_dictionaries(
        {
            "name": st.just("fuzz") | values(),
            "model": some_keys(ModelSpec).map(lambda found: {"model_name_or_path": "base", **found}) | values(),
            "data": st.dictionaries(
                st.sampled_from(["prefs", *NAMES]), some_keys(DataSpec).map(lambda found: {"path": "toy", **found})
            ),
            "stages": st.dictionaries(st.sampled_from(NAMES), st.one_of(kinds) | values(), max_size=3).map(
                lambda found: {**good, **found}
            ),
        },
        optional={
            "rounds": some_keys(LoraSpec) | values(),
            "tracking": values(),
            "seed": values(),
            "price": some_keys(OptimisationSpec),
            "more": some_keys(Recipe),
        },
    )


def edited() -> SearchStrategy[str]:
    """A good recipe with something else written over some places."""
    edit = st.tuples(st.integers(0, len(GOOD)), st.integers(0, 12), st.sampled_from(TOKENS))

    def apply(edits: list[tuple[int, int, str]]) -> str:
        text = GOOD
        for start, length, token in edits:
            text = text[:start] + token + text[start + length :]
        return text

    return st.lists(edit, min_size=1, max_size=4).map(apply)


STRATEGIES: dict[str, SearchStrategy[bytes]] = {
    "bytes": st.binary(max_size=400),
    "text of YAML": st.lists(st.sampled_from(TOKENS), max_size=40).map(lambda found: "".join(found).encode()),
    "edited recipes": edited().map(str.encode),
    "recipes by the schema": trees().map(lambda tree: json.dumps(tree, allow_nan=True).encode()),
}


def judge(folder: Path) -> Callable[[bytes], str]:
    path = folder / "fuzz.yaml"

    def outcome(content: bytes) -> str:
        path.write_bytes(content)
        try:
            loading.load(path)
        except RecipeError as error:
            assert error.problems
            for problem in error.problems:
                require_one_line(str(problem), "fuzz.yaml")
            return "refused"
        return "accepted"

    return outcome


def run_all(folder: Path, cases: int) -> int:
    tried = 0
    for name, strategy in STRATEGIES.items():
        ended = fuzz(strategy, judge(folder), cases // len(STRATEGIES))
        assert not ended.error and not ended.killed, f"{name}: {ended.error}"
        assert ended.value["slowest"] < SECONDS_OF_A_CASE, (name, ended.value)
        assert "refused" in ended.value["outcomes"], name
        tried += ended.value["cases"]
    return tried


def test_t35_generated_recipes_are_accepted_or_refused_in_words(tmp_path: Path) -> None:
    assert run_all(tmp_path, FEW) >= 0.5 * FEW  # a strategy may come to an end before


@pytest.mark.sweep
def test_t35_ten_thousand_generated_recipes_are_accepted_or_refused_in_words(tmp_path: Path, count: Count) -> None:
    tried = run_all(tmp_path, ALL)
    assert tried >= 0.9 * ALL
    count("T35", "generated recipes and byte strings", tried)


def said_by_check(folder: Path) -> Callable[[bytes], str]:
    path = folder / "fuzz.yaml"

    def outcome(content: bytes) -> str:
        path.write_bytes(content)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = run_command(["check", str(path)])
        assert code in (0, 2), f"exit code {code}: {said.getvalue()}"
        assert "Traceback" not in said.getvalue() and "fault of prefopt" not in said.getvalue()
        assert (code == 2) == said.getvalue().startswith("error:")
        return f"exit code {code}"

    return outcome


@pytest.mark.parametrize("name", ["edited recipes", "recipes by the schema"])
def test_t35_the_command_answers_generated_recipes_without_a_traceback(tmp_path: Path, name: str) -> None:
    ended = fuzz(STRATEGIES[name], said_by_check(tmp_path), FEW // 8)
    assert not ended.error, ended.error


@pytest.mark.parametrize("content", [b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n".encode() for n in range(9)
), b"name: x\n" * 1_500_000, b"[" * 100_000, b"\xff\xfe" + b"x" * 100, b"a: " + b"9" * 5_000_000])  # fmt: skip
def test_t35_hostile_files_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    """A bomb of anchors, ten megabytes, nesting, not UTF-8, a number of five million digits."""
    ended = fuzz(st.just(content), judge(tmp_path), 1)
    assert not ended.error, ended.error
    assert ended.value["outcomes"] == {"refused": 1} and ended.value["slowest"] < SECONDS_OF_A_CASE


# -- what the checks are worth -----------------------------------------------------------------------------------------


def test_t35_a_planted_fault_of_the_loader_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = loading.parse

    def faulty(text: str, file: str) -> Any:
        if "010" in text:
            raise ZeroDivisionError
        return parse(text, file)

    monkeypatch.setattr(loading, "parse", faulty)
    assert "ZeroDivisionError" in fuzz(STRATEGIES["text of YAML"], judge(tmp_path), FEW).error


def test_t35_memory_without_bound_is_found() -> None:
    assert "MemoryError" in fuzz(st.just(0), lambda case: len(bytearray(3 * (1 << 30))), 1).error
