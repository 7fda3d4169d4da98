"""The quickstart, small, as a user runs it: the first time, again, after a change, in parts."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.store import manifest as manifests
from prefopt.tracking.metrics import describe
from tests.end_to_end.small import (
    QUICKSTART,
    STAGES,
    Finished,
    Warm,
    copy_run,
    environment,
    finished,
    folder,
    prefopt,
    results,
    snapshot,
    states,
    weights,
    words,
)

pytestmark = pytest.mark.slow

LOCK = ("lock",)


def explained(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        assert describe(name).meaning and math.isfinite(value), name


def test_a_run_ends_with_a_table_and_a_report(quickstart: Finished) -> None:
    done, out = quickstart.done, quickstart.out
    assert done.returncode == 0, done.stderr
    assert states(quickstart.done) == dict.fromkeys(STAGES, "done")
    for shown in ("win rate", "sft (baseline)", "share of headroom", "reward model", "held-out pairs"):
        assert shown in done.stdout, shown
    assert done.stdout.rstrip().endswith(f"report: {out / 'report' / 'index.html'}")
    page = (out / "report" / "index.html").read_text()
    assert page.lower().startswith("<!doctype html") and all(f">{stage}<" in page for stage in STAGES)
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    for number, stage in enumerate(STAGES, start=1):
        assert f"[{number}/{len(STAGES)}] {stage}" in done.stderr


def test_every_artefact_verifies_and_every_number_is_explained(quickstart: Finished) -> None:
    for stage in STAGES:
        directory = folder(quickstart.out, stage)
        assert directory is not None
        manifest = manifests.verify(directory, full=True)
        measured = json.loads((directory / "metrics.json").read_text())
        assert measured and measured == manifest.metrics
        explained(measured)
        assert manifest.cost["wall_seconds"] > 0 and manifest.cost["peak_host_bytes"] > 2**20
        if stage not in ("pairs", "checks", "eval"):
            rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
            names = {name for row in rows for name in row} - {"step", "time", "summary"}
            held_out = set() if stage == "ppo" else {"eval/loss"}
            assert {"train/loss", "train/learning_rate"} | held_out <= names
            explained(dict.fromkeys(names, 0.0))
    assert json.loads((quickstart.out / "fingerprint.json").read_text())


def test_a_second_run_does_nothing_at_once(quickstart: Finished) -> None:
    before = snapshot(quickstart.out, without=LOCK)
    script = (
        "import sys; from prefopt.cli.app import run_command; code = run_command(sys.argv[1:]);"
        "print(sorted({'torch', 'transformers', 'datasets', 'trl', 'peft'} & sys.modules.keys()), file=sys.stderr);"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *words(quickstart.out)]
    done = _subprocess(command)
    assert done.returncode == 0, done.stderr
    assert states(done) == dict.fromkeys(STAGES, "skipped")
    assert done.stderr.splitlines()[-1] == "[]"
    assert snapshot(quickstart.out, without=LOCK) == before


def _subprocess(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment(**variables), timeout=60)


def test_status_tells_a_person_and_a_program_that_all_is_done(quickstart: Finished) -> None:
    shown = prefopt("status", quickstart.out)
    assert shown.returncode == 0 and states(shown) == dict.fromkeys(STAGES, "done")
    read = json.loads(prefopt("status", "--json", "--verify", quickstart.out).stdout)
    assert {stage["stage"]: stage["next"] for stage in read["stages"]} == dict.fromkeys(STAGES, "nothing")
    assert read["running"] is None and all(stage["metrics"] for stage in read["stages"])


def test_run_json_is_one_document(quickstart: Finished) -> None:
    done = prefopt(*words(quickstart.out, "--json"))
    document = json.loads(done.stdout)
    assert [stage["stage"] for stage in document["stages"]] == list(STAGES)
    assert document["exit_code"] == done.returncode == 0
    assert Path(document["report"]).is_file() and Path(document["directory"]) == quickstart.out
    for stage in document["stages"]:
        explained(stage["metrics"])


def test_a_changed_learning_rate_runs_what_depends_on_it(quickstart: Finished, out: Path, warm: Warm) -> None:
    copy_run(quickstart.out, out)
    before = finished(out)
    change = ("--set", "stages.dpo.learning_rate=1.7e-3")
    planned = warm.run(words(out, *change, "--dry-run"))
    changing = ("dpo", "eval")
    assert states(planned) == {stage: "would" if stage in changing else "done" for stage in STAGES}
    assert re.search(r"changed: learning_rate \S+ → 0.0017", planned.stdout)
    changed = warm.run(words(out, *change))
    assert changed.returncode == 0, changed.stderr
    assert states(changed) == {stage: "done" if stage in changing else "skipped" for stage in STAGES}
    assert re.search(r"dpo: changed: learning_rate \S+ → 0.0017", changed.stderr)
    assert finished(out).items() >= before.items()
    old, new = weights(quickstart.out), weights(out)
    assert new["dpo"] != old["dpo"] and new["sft"] == old["sft"]
    # The way back costs nothing: what was made first is still there.
    back = warm.run(words(out))
    assert states(back) == dict.fromkeys(STAGES, "skipped")


def test_from_makes_a_stage_and_what_follows_again_with_the_same_result(
    quickstart: Finished, out: Path, warm: Warm
) -> None:
    copy_run(quickstart.out, out)
    before = {stage: snapshot(folder(out, stage) or out) for stage in STAGES}
    again = warm.run(words(out, "--from", "pairs"))
    remade = ["pairs", "reward", "checks", "dpo", "ppo", "eval"]
    assert states(again) == {stage: "done" if stage in remade else "skipped" for stage in STAGES}, again.stderr
    assert "pairs: --from asks for it" in again.stderr
    after = {stage: snapshot(folder(out, stage) or out) for stage in STAGES}
    assert [stage for stage in STAGES if after[stage] != before[stage]] == remade
    assert results(out) == results(quickstart.out)


def test_only_runs_one_stage_and_says_what_it_lacks(out: Path, warm: Warm) -> None:
    refused = warm.run(words(out, "--only", "sft"))
    assert refused.returncode == 2
    assert "--only sft: it reads base, which is not done — add --only base" in refused.stderr
    base = warm.run(words(out, "--only", "base", "--json"))
    assert base.returncode == 0, base.stderr
    found = {stage["stage"]: stage["state"] for stage in json.loads(base.stdout)["stages"]}
    assert found == {stage: "done" if stage == "base" else "not selected" for stage in STAGES}
    assert folder(out, "sft") is None


def test_dry_run_writes_nothing(tmp_path: Path, out: Path) -> None:
    planned = prefopt(*words(out, "--dry-run"))
    assert planned.returncode == 0 and states(planned) == dict.fromkeys(STAGES, "would")
    assert re.search(r"base +pretrain +would run +– +new", planned.stdout)
    assert re.search(r"sft +sft +would run +– +after base", planned.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_is_a_program(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "prefopt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m prefopt "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    planned = _subprocess([str(QUICKSTART), "--dry-run", "--out", str(tmp_path / "out")], PATH=path)
    assert planned.returncode == 0, planned.stderr
    assert states(planned) == dict.fromkeys(STAGES, "would")
