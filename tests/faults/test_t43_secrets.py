"""Values of variables that look like secrets are in no file of a run and in nothing that a command says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from prefopt.report import render
from prefopt.store import secrets
from tests.faults.runs import RECIPE, Experiment
from tests.run_folder import RunFolder

SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz123456",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "JUDGE_API_KEY": "sk-judge-abcdefghijklmnop",
    "SERVICE_PASSWORD": "correct horse battery staple",
}
TRACKED = RECIPE.replace(
    "stages:\n", 'description: "by ${HF_TOKEN}"\ntracking: {wandb: {project: faults, mode: offline}}\nstages:\n', 1
)


def leaks(*folders: Path) -> list[str]:
    """Which secrets are in which files."""
    found = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        content = path.read_bytes()
        found += [f"{name} in {path}" for name, value in SECRETS.items() if value.encode() in content]
    return found


@pytest.mark.slow
def test_t43_no_secret_is_in_what_a_run_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    experiment = Experiment(tmp_path / "experiment", TRACKED)
    ended = experiment.run(only=("base", "sft"), report=True)
    assert not ended.error and ended.value["states"]["sft"] == "done", ended
    assert (experiment.out / "report" / "index.html").is_file() and list(experiment.out.rglob("run-*.wandb"))
    assert leaks(experiment.directory / "runs") == []
    said = " ".join(ended.value["said"]) + (experiment.directory / "said").read_text()
    assert not [name for name, value in SECRETS.items() if value in said]


@pytest.mark.slow
def test_t43_a_secret_in_an_error_of_a_stage_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PASSWORD", SECRETS["SERVICE_PASSWORD"])
    lost = RECIPE.replace("path: toy, name: corpus", 'path: "./${SERVICE_PASSWORD}.jsonl"', 1)
    experiment = Experiment(tmp_path / "experiment", lost)
    rows = experiment.directory / f"{SECRETS['SERVICE_PASSWORD']}.jsonl"
    rows.write_text('{"text": 3}\n')
    ended = experiment.run(only=("base",))
    assert not ended.error, ended.error
    code, said = ended.value["errors"]["base"]
    assert code == 2 and "[redacted].jsonl" in said and SECRETS["SERVICE_PASSWORD"] not in said, said
    assert leaks(experiment.out / "logs") == []
    assert SECRETS["SERVICE_PASSWORD"] not in (experiment.out / "events.jsonl").read_text()


def test_t43_a_secret_that_an_error_quotes_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefopt.cli.app import run_command

    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("name: corpus", 'name: "${HF_TOKEN}"'))
    assert run_command(["check", str(path)]) == 2
    assert SECRETS["HF_TOKEN"] not in "".join(capsys.readouterr())


def test_t43_without_redaction_a_secret_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    folder = RunFolder(tmp_path / "run", recipe="name: x  # " + SECRETS["HF_TOKEN"] + "\n")
    folder.train("base")
    render(folder.run.root)
    assert leaks(folder.run.root / "report") == []
    shutil.rmtree(folder.run.root / "report")
    monkeypatch.setattr(secrets, "SECRET_VARIABLE", re.compile("(?!)"))
    render(folder.run.root)
    assert leaks(folder.run.root / "report") != []
