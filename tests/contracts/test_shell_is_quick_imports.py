"""What answers at once imports no machine learning library: the modules are counted, as time depends on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.end_to_end.small import QUICKSTART, Finished, environment, words

HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "wandb", "scipy", "pandas", "pyarrow"}
SCRIPT = """
import json, sys
from prefopt.cli.app import run_command
code = run_command(sys.argv[1:])
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def imported(*line: str) -> set[str]:
    command = [sys.executable, "-c", SCRIPT, *line]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "line", [("--help",), ("--version",), ("run", "--help"), ("recipes",), ("schema",), ("check", str(QUICKSTART))]
)
def test_the_shell_imports_no_heavy_library(line: tuple[str, ...]) -> None:
    assert imported(*line) & HEAVY == set()


@pytest.mark.slow
def test_neither_do_status_and_the_run_of_what_is_finished(quickstart: Finished) -> None:
    assert imported("status", str(quickstart.out)) & HEAVY == set()
    assert imported(*words(quickstart.out)) & HEAVY == set()
