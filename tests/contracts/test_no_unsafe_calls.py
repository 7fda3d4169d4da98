"""Nothing in the package unpickles, runs a shell, trusts code of others, or reads YAML with objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.small import ROOT

PACKAGE = sorted((ROOT / "prefopt").rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
CALLS = {"os.system", "os.popen", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load",
         "np.load", "numpy.load"}  # fmt: skip
METHODS = {"load_custom_state", "register_for_checkpointing"}
ARGUMENTS = {"shell": True, "trust_remote_code": True, "weights_only": False, "allow_pickle": True}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value) or '…'}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (f"line {node.lineno}: imports {each.name}" for each in node.names if each.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"line {node.lineno}: imports {node.module}"
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = name_of(node.func)
    given = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
    safe_numbers = name in ("np.load", "numpy.load") and given.get("allow_pickle") is False
    if (name in CALLS or name.rpartition(".")[2] in METHODS) and not safe_numbers:
        yield f"line {node.lineno}: calls {name}"
    for argument, value in ARGUMENTS.items():
        if argument in given and given[argument] is value:
            yield f"line {node.lineno}: {argument}={value}"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_calls_nothing_unsafe(path: Path) -> None:
    assert list(unsafe(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from dill import loads", "yaml.load(x)", "import torch\ntorch.load(x)", "os.system('ls')",
        "subprocess.run('ls', shell=True)", "f(trust_remote_code=True)", "torch.load(x, weights_only=False)",
        "np.load(x)", "np.load(x, allow_pickle=True)", "eval(x)", "accelerator.load_custom_state(x)",
    ],
)  # fmt: skip
def test_what_is_unsafe_is_found(text: str) -> None:
    assert list(unsafe(text))


def test_what_is_safe_is_not() -> None:
    assert list(unsafe("model.eval()\nyaml.safe_load(x)\nnp.load(x, allow_pickle=False)\nf(trust_remote_code=y)")) == []
