import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GOOD = """\
#!/usr/bin/env -S prefopt run
name: quickstart
model: {model_name_or_path: base}
data:
  demos: {path: toy, name: demonstrations}
  prefs: {path: toy, name: preferences}
stages:
  dpo: {kind: dpo, init: sft, data: prefs}
  sft: {kind: sft, data: demos}
  base: {kind: pretrain, data: demos}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def shell():
    """Runs `prefopt` as a user does, in a process of its own."""

    def run(*words, **options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **options.pop("env", {})}
        command = [sys.executable, "-m", "prefopt", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, **options)

    return run


@pytest.fixture
def imported():
    """The modules that a command line imports."""

    def run(*words):
        code = (
            "import json, sys; from prefopt.cli.app import run_command; code = run_command(sys.argv[1:]); "
            "print('\\n' + json.dumps([code, sorted(sys.modules)]))"
        )
        command = [sys.executable, "-c", code, *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
        exit_code, modules = json.loads(done.stdout.splitlines()[-1])
        assert exit_code == 0, done.stderr
        return set(modules)

    return run
