import errno
import json
import re

import pytest

from prefopt import errors
from prefopt.cli import app
from prefopt.cli.app import LATER_VERBS, VERBS, run_command

HEAVY = {"torch", "transformers", "datasets", "numpy", "matplotlib", "wandb", "trl", "peft"}


def test_help_imports_next_to_nothing(imported):
    modules = imported("--help")
    assert not modules & (HEAVY | {"pydantic", "yaml", "jinja2"})


@pytest.mark.parametrize("words", [("check", "RECIPE"), ("recipes",), ("schema",)])
def test_quick_verbs_import_no_torch(imported, recipe, words):
    assert not imported(*(recipe if word == "RECIPE" else word for word in words)) & HEAVY


def test_help_lists_the_verbs_and_says_what_is_later(shell):
    done = shell("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert re.search(rf"│ {verb} ", done.stdout)
    assert all(verb in done.stdout for verb in LATER_VERBS)
    assert not re.search(r"│ audit ", done.stdout)
    assert "\x1b" not in done.stdout


def test_no_arguments_and_version(shell):
    assert "Usage" in shell().stdout
    assert re.fullmatch(r"prefopt \d+\.\d+\.\d+\n", shell("--version").stdout)


@pytest.mark.parametrize("verb", LATER_VERBS)
def test_later_verbs_are_refused_by_name(capsys, verb):
    assert run_command([verb, "something", "--option", "x"]) == 2
    assert f"'{verb}' is not in this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chek"], "Did you mean 'check'"),
        (["my.yaml"], "did you mean `prefopt run my.yaml`?"),
        (["check"], "Missing argument 'RECIPE'"),
        (["check", "x.yaml", "--nope"], "No such option"),
        (["--nope"], "No such option"),
    ],
)
def test_wrong_command_lines_end_with_2_and_one_line(capsys, words, said):
    assert run_command(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def failing(monkeypatch, error):
    def command():
        raise error

    monkeypatch.setattr(app, "_command", lambda verb: command)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.DataError("row 3 is empty", "drop it"), 2, "error: row 3 is empty — drop it"),
        (errors.EnvironmentFault("no disk"), 3, "error: no disk"),
        (errors.TrainingDiverged("NaN"), 4, "error: NaN"),
        (errors.IntegrityError("torn"), 5, "error: torn"),
        (errors.GateRefused("no"), 6, "error: no"),
        (errors.Interrupted("waiting"), 75, "error: waiting"),
        (KeyboardInterrupt(), 75, "error: interrupted — the same command goes on"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 3, "No space left on device: /x — free some space"),
        (MemoryError(), 3, "out of memory"),
        (TypeError("oops"), 1, "fault of prefopt: TypeError: oops — the same command with --debug"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(capsys, monkeypatch, error, code, said):
    failing(monkeypatch, error)
    assert run_command(["status"]) == code
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and "Traceback" not in captured.err


@pytest.mark.parametrize("words", [["status", "--debug"], ["--debug", "status"]])
def test_debug_anywhere_shows_the_traceback(capsys, monkeypatch, words):
    failing(monkeypatch, errors.DataError("bad"))
    assert run_command(words) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: bad\n")


def test_debug_after_two_dashes_is_text():
    assert app._without_debug(["sample", "--", "--debug"]) == (False, ["sample", "--", "--debug"])


def test_json_errors_are_one_document_on_stdout(capsys, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("nme: x\n")
    assert run_command(["check", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert captured.err == ""
    assert error["type"] == "RecipeError" and error["exit_code"] == 2
    assert {"where": f"{path}:1", "key": "nme", "message": "unknown key", "remedy": "did you mean 'name'?"} in error[
        "problems"
    ]


def test_exit_code_of_a_verb_is_its_answer(monkeypatch):
    monkeypatch.setattr(app, "_command", lambda verb: lambda: 6)
    assert run_command(["status"]) == 6


def test_closed_pipe_is_quiet(tmp_path):
    import subprocess
    import sys

    from .conftest import ROOT

    command = f"{sys.executable} -m prefopt schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.strip() in ("141", "0"), "0 where the pipe took the whole before it was closed"
