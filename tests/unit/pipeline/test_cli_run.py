"""The verbs `run` and `status` as a user calls them, on a run that fake stages have finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from experiment import Experiment

from prefopt.cli.app import run_command


def test_a_finished_recipe_runs_again_without_torch(experiment: Experiment) -> None:
    experiment.run()
    script = (
        "import sys; from prefopt.cli.app import run_command;"
        f"code = run_command(['run', {str(experiment.recipe)!r}, '--out', {str(experiment.out)!r}]);"
        "heavy = sorted({'torch', 'transformers', 'datasets', 'pandas', 'trl', 'peft'} & sys.modules.keys());"
        "print(heavy, file=sys.stderr); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout.count("skipped") == 4


def test_dry_run_and_status_in_json_are_one_document(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", str(experiment.recipe), "--out", str(experiment.out), "--dry-run", "--json"]) == 0
    assert [stage["state"] for stage in json.loads(capsys.readouterr().out)["stages"]] == ["would run"] * 4
    assert not experiment.out.exists()
    experiment.run(only=("base",))
    assert run_command(["status", str(experiment.out), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["state"] for stage in stages] == ["done", "missing", "missing", "missing"]


def test_status_verify_names_a_damaged_file_with_exit_5(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.run(only=("base",))
    weights = experiment.adapter("base")
    assert run_command(["status", str(experiment.out), "--verify"]) == 0
    weights.write_text("z" * 64)
    assert run_command(["status", str(experiment.out), "--verify"]) == 5
    assert str(weights) in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--seeds", "0"], ["--only", "dop"], ["--from", "dop"], ["--set", "stages.dpo.beta=-1"]]
)
def test_what_cannot_be_meant_is_refused_with_exit_2(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run_command(["run", str(experiment.recipe), "--out", str(experiment.out), *words]) == 2
    assert words[1].split("=")[0] in capsys.readouterr().err or "--seeds" in words
    assert not experiment.out.exists()
