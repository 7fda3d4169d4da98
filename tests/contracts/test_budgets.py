"""Files and functions stay small enough to be read at one go, and nothing is swallowed, stubbed or nameless."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.tracking.metrics import METRICS, describe
from tests.end_to_end.small import ROOT

LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 60
LINES_OF_AN_INIT = 40
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "stuff"}
BROAD = {"Exception", "BaseException"}
PACKAGE = sorted((ROOT / "prefopt").rglob("*.py"))
EVERYTHING = [*PACKAGE, *sorted((ROOT / "tests").rglob("*.py"))]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def found_in(path: Path) -> Iterator[str]:
    """What breaks a budget or hides a fault in a file, one line each."""
    text = path.read_text(encoding="utf-8")
    if text.count("\n") > LINES_OF_A_FILE:
        yield f"{text.count(chr(10))} lines"
    if NAMELESS & {path.stem, *path.relative_to(ROOT).parts}:
        yield "the name says nothing"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield from _function(node)
        elif isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _says_something(node.body):
            yield f"line {node.lineno}: an error is swallowed"
        elif isinstance(node, ast.Call) and _name(node.func) == "suppress" and any(map(_is_broad, node.args)):
            yield f"line {node.lineno}: every error is suppressed"
        elif isinstance(node, ast.Raise) and _name(node.exc) == "NotImplementedError":
            yield f"line {node.lineno}: a stub"


def _function(node: Function) -> Iterator[str]:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    limit = LINES_OF_AN_INIT if node.name == "__init__" else LINES_OF_A_FUNCTION
    if length > limit:
        yield f"line {node.lineno}: {node.name} has {length} lines"


def _name(node: ast.AST | None) -> str:
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_broad(node: ast.AST | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(map(_is_broad, node.elts))
    return node is None or _name(node) in BROAD


def _says_something(body: list[ast.stmt]) -> bool:
    """Whether a handler does more than go on."""
    silent = (ast.Pass, ast.Continue, ast.Break)
    return not all(isinstance(line, silent) or (isinstance(line, ast.Expr) and _constant(line)) for line in body)


def _constant(line: ast.Expr) -> bool:
    return isinstance(line.value, ast.Constant)


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_budgets_hold(path: Path) -> None:
    assert list(found_in(path)) == []


def test_what_breaks_a_budget_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.contracts.test_budgets.ROOT", tmp_path)
    bad = tmp_path / "utils.py"
    bad.write_text(
        "def long():\n" + "    x = 1\n" * 60 + "def stub():\n    raise NotImplementedError\n"
        "try:\n    stub()\nexcept (ValueError, Exception):\n    pass\n"
        "try:\n    stub()\nexcept:\n    ...\n"
        "with contextlib.suppress(BaseException):\n    stub()\n" + "\n" * 400
    )
    said = " ".join(found_in(bad))
    for words in ("lines", "says nothing", "long has 61", "a stub", "swallowed", "suppressed"):
        assert words in said
    assert said.count("swallowed") == 2


GROUPS = {name.partition("/")[0] for name in METRICS}
LOGGED = re.compile(rf"(?:{'|'.join(sorted(GROUPS))})(?:/[a-z_]+)+")


def test_every_metric_named_in_the_code_is_in_the_table() -> None:
    table = ROOT / "prefopt" / "tracking" / "metrics.py"
    names: dict[str, str] = {}
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path != table else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and LOGGED.fullmatch(node.value):
                names[node.value] = f"{path.relative_to(ROOT)}:{node.lineno}"
    assert {"train/loss", "dpo/margin"} <= names.keys()
    unknown = []
    for name, where in names.items():
        if name.endswith("_") and any(known.startswith(name) for known in METRICS):
            continue  # the beginning of a name that is put together
        try:
            describe(name)
        except KeyError:
            unknown.append(f"{where}: {name}")
    assert unknown == []
