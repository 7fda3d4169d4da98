from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from experiment import Experiment, states

from prefopt.errors import EnvironmentFault, InputError, IntegrityError, TrainingDiverged
from prefopt.store import manifest as manifests


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_does_every_stage_once_and_a_second_run_does_nothing(experiment: Experiment) -> None:
    first = experiment.run()
    assert states(first) == dict.fromkeys(("base", "sft", "other", "dpo"), "done")
    assert first.exit_code == 0
    assert first.stages[0].metrics == {"train/loss": 0.25}
    assert ("dpo", 6) in experiment.listener.steps
    before = tree(experiment.out / "stages")
    second = experiment.run()
    assert states(second) == dict.fromkeys(("base", "sft", "other", "dpo"), "skipped")
    assert tree(experiment.out / "stages") == before
    assert experiment.count("dpo start") == 1
    manifest = manifests.read(experiment.adapter("dpo").parents[1])
    assert set(manifest.inputs) == {"base", "sft"}
    assert manifest.cost["wall_seconds"] > 0 and manifest.cost["peak_host_bytes"] > 1e6 and manifest.cost["tokens"] == 7
    assert {o.path for o in manifest.outputs} == {"adapter/weights", "metrics.json", "metrics.jsonl"}


def test_dry_run_writes_nothing_and_says_why(experiment: Experiment) -> None:
    before = sorted(experiment.folder.rglob("*"))
    planned = experiment.run(dry_run=True)
    assert sorted(experiment.folder.rglob("*")) == before
    assert states(planned) == dict.fromkeys(("base", "sft", "other", "dpo"), "would run")
    assert [outcome.headline for outcome in planned.stages] == ["new", "after base", "after base", "after base, sft"]


def test_a_changed_recipe_gets_a_new_key_and_says_what_changed(experiment: Experiment) -> None:
    experiment.run()
    old = experiment.adapters()
    planned = experiment.run("stages.sft.learning_rate=1.0e-5", dry_run=True)
    assert states(planned) == {"base": "done", "sft": "would run", "other": "done", "dpo": "would run"}
    assert planned.stages[1].headline == "changed: learning_rate 2e-4 → 1e-5"
    summary = experiment.run("stages.sft.learning_rate=1.0e-5")
    assert states(summary) == {"base": "skipped", "sft": "done", "other": "skipped", "dpo": "done"}
    assert any("inputs.sft" in message for message in experiment.listener.messages)
    new = experiment.adapters()
    assert new["other"] == old["other"] and new["dpo"] != old["dpo"]
    # Going back finds the earlier artefacts again.
    assert set(states(experiment.run()).values()) == {"skipped"}
    assert experiment.adapters() == old


def test_keys_that_change_no_numbers_run_nothing_again(experiment: Experiment) -> None:
    experiment.run()
    summary = experiment.run("stages.sft.logging_steps=1", "stages.dpo.save_steps=7", "stages.dpo.seed=3")
    assert set(states(summary).values()) == {"skipped"}


def test_changed_data_runs_again_and_touched_data_does_not(experiment: Experiment) -> None:
    experiment.run()
    rows = experiment.folder / "rows.jsonl"
    os.utime(rows, (1, 1))
    assert set(states(experiment.run()).values()) == {"skipped"}
    rows.write_text(rows.read_text() * 2)
    assert states(experiment.run())["base"] == "done"


def test_an_interrupted_stage_of_other_settings_is_never_continued(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 4, "what": "kill"}})
    experiment.run(only=("base", "sft"))
    experiment.behave({})
    experiment.log.unlink()
    experiment.run("stages.sft.learning_rate=1.0e-5", only=("sft",))
    assert experiment.count("sft step 1") == 1
    assert any("learning_rate 2e-4 → 1e-5" in message for message in experiment.listener.messages)


@pytest.mark.parametrize("when", [1, 4, "end"])
def test_a_killed_stage_resumes_with_the_same_result(experiment: Experiment, when: object) -> None:
    experiment.behave({"sft": {"when": when, "what": "kill"}})
    crashed = experiment.run()
    assert states(crashed) == {"base": "done", "sft": "failed", "other": "done", "dpo": "blocked"}
    assert crashed.exit_code == 3
    assert "SIGKILL" in str(crashed.errors[0])
    done = (experiment.adapter("base").stat().st_mtime_ns, experiment.adapter("other").stat().st_mtime_ns)
    experiment.behave({})
    resumed = experiment.run()
    assert states(resumed) == {"base": "skipped", "sft": "done", "other": "skipped", "dpo": "done"}
    assert done == (experiment.adapter("base").stat().st_mtime_ns, experiment.adapter("other").stat().st_mtime_ns)
    assert experiment.count("sft step") == 6
    manifest = manifests.read(experiment.adapter("sft").parents[1])
    assert manifest.key[:12] == experiment.adapter("sft").parents[1].name
    whole = Experiment(_folder(experiment.folder / "whole"))
    assert whole.run().exit_code == 0
    assert whole.adapters() == experiment.adapters()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_independent_branches_go_on_and_all_failures_are_told(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 2, "what": "diverge"}, "other": {"when": 2, "what": "bug"}})
    summary = experiment.run()
    assert states(summary) == {"base": "done", "sft": "failed", "other": "failed", "dpo": "blocked"}
    assert [error.exit_code for error in summary.errors] == [4, 1]
    assert isinstance(summary.errors[0], TrainingDiverged) and summary.errors[0].remedy == "lower learning_rate"
    assert "ZeroDivisionError: a bug" in str(summary.errors[1])
    assert "fake_stage.py" in str(summary.errors[1].__cause__)
    assert "ZeroDivisionError" in (experiment.out / "logs" / "other.log").read_text()
    assert summary.exit_code == 4


def test_a_full_disk_in_a_library_is_an_environment_fault(experiment: Experiment) -> None:
    experiment.behave({"base": {"when": 3, "what": "full"}})
    error = experiment.run().errors[0]
    assert isinstance(error, EnvironmentFault)
    assert "bytes are free" in str(error)


def test_a_result_that_is_not_finite_is_never_committed(experiment: Experiment) -> None:
    experiment.behave({"base": {"loss": "nan"}})
    summary = experiment.run()
    assert states(summary)["base"] == "failed" and summary.exit_code == 4
    assert "train/loss" in str(summary.errors[0])


def test_a_stage_that_waits_lets_others_go_on(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 2, "what": "wait"}})
    summary = experiment.run()
    assert states(summary) == {"base": "done", "sft": "waiting", "other": "done", "dpo": "blocked"}
    assert summary.exit_code == 75
    assert "prefopt run" in str(summary.errors[0])
    assert experiment.status().stages[1].state == "waiting"


def test_a_damaged_artefact_is_made_again_and_kept_aside(experiment: Experiment) -> None:
    experiment.run()
    before = experiment.adapters()
    weights = experiment.adapter("sft")
    weights.write_text("x" * len(before["sft"]))
    summary = experiment.run()
    assert states(summary) == {"base": "skipped", "sft": "done", "other": "skipped", "dpo": "skipped"}
    assert any(str(weights) in message for message in experiment.listener.messages)
    assert len(list(weights.parents[2].glob("*.torn"))) == 1
    assert experiment.adapters() == before


def test_a_torn_manifest_is_not_believed(experiment: Experiment) -> None:
    experiment.run(only=("base",))
    manifest = experiment.adapter("base").parents[1] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert states(experiment.run(only=("base",)))["base"] == "done"
    assert manifests.verify(manifest.parent, full=True).stage == "base"


def test_a_flipped_bit_that_changes_no_time_is_found_before_it_is_read(experiment: Experiment) -> None:
    experiment.run(only=("base", "sft"))
    time.sleep(0.2)
    experiment.run(only=("base", "sft"))  # hashes of files this old are remembered
    weights = experiment.adapter("sft")
    status = weights.stat()
    content = bytearray(weights.read_bytes())
    content[3] ^= 1
    with weights.open("r+b") as file:
        file.write(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    summary = experiment.run()
    assert states(summary)["dpo"] == "failed" and summary.exit_code == 5
    assert str(weights) in str(summary.errors[0]) and "--from sft" in str(summary.errors[0])
    assert experiment.count("dpo start") == 0
    assert states(experiment.run(start_from="sft"))["dpo"] == "done"


def test_from_makes_a_stage_and_what_follows_anew(experiment: Experiment) -> None:
    experiment.run()
    before = experiment.adapters()
    summary = experiment.run(start_from="sft")
    assert states(summary) == {"base": "skipped", "sft": "done", "other": "skipped", "dpo": "done"}
    assert experiment.count("sft step 1") == 2 and experiment.count("base step 1") == 1
    assert experiment.adapters() == before
    assert not list(experiment.out.rglob("*.replaced"))


def test_only_needs_what_it_reads(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="--only dpo: it reads base, sft"):
        experiment.run(only=("dpo",))
    assert not experiment.log.exists()
    summary = experiment.run(only=("base", "sft"))
    assert states(summary) == {"base": "done", "sft": "done", "other": "not selected", "dpo": "not selected"}
    assert states(experiment.run(only=("dpo",)))["dpo"] == "done"


@pytest.mark.parametrize("options", [{"only": ("dop",)}, {"start_from": "dop"}])
def test_an_unknown_stage_is_refused_before_anything_is_written(
    experiment: Experiment, options: dict[str, object]
) -> None:
    with pytest.raises(InputError, match="no stage 'dop'"):
        experiment.run(**options)
    assert not experiment.out.exists()


def test_a_run_folder_that_is_a_file_is_an_environment_fault(experiment: Experiment) -> None:
    experiment.out.parent.mkdir()
    experiment.out.write_text("")
    with pytest.raises(EnvironmentFault, match=r"cannot write .*fake: .*not a directory"):
        experiment.run()


def test_too_little_room_is_found_before_anything_runs(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.pipeline.preflight.STAGE_BYTES", 2**62)
    with pytest.raises(EnvironmentFault, match=r"needs at least 184\d+ bytes, \d+ bytes are free"):
        experiment.run()
    assert not experiment.log.exists()


def test_status_tells_where_a_run_stands(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 4, "what": "diverge"}})
    experiment.run()
    status = experiment.status()
    assert [stage.state for stage in status.stages] == ["done", "failed", "done", "missing"]
    assert "loss is nan" in status.stages[1].next and "checkpoint-3" in status.stages[1].next
    assert status.stages[0].metrics == {"train/loss": 0.25}
    assert status.holder == ""
    json.dumps(status.to_json(), allow_nan=False)
    weights = experiment.adapter("base")
    weights.write_text("y" * 64)
    assert [stage.state for stage in experiment.status(verify=True).stages] == [
        "damaged",
        "missing",
        "stale",
        "missing",
    ]


def test_status_reads_the_recipe_with_its_overrides(experiment: Experiment) -> None:
    experiment.run("stages.sft.learning_rate=1.0e-5")
    assert {stage.state for stage in experiment.status().stages} == {"done"}
    text = (experiment.out / "recipe.yaml").read_text()
    assert str(experiment.folder / "rows.jsonl") in text
    fingerprint = json.loads((experiment.out / "fingerprint.json").read_text())
    assert fingerprint["overrides"] == ["stages.sft.learning_rate=1.0e-5"]


def test_status_of_a_folder_without_a_run(tmp_path: Path) -> None:
    from prefopt.pipeline.status import run_status

    with pytest.raises(InputError, match=r"no recipe\.yaml"):
        run_status(tmp_path)


def test_the_report_is_made_once_and_again_when_something_ran(experiment: Experiment) -> None:
    summary = experiment.run(only=("base",), report=True)
    assert summary.report == experiment.out / "report" / "index.html"
    before = summary.report.stat().st_mtime_ns
    again = experiment.run(only=("base",), report=True)
    assert again.report == summary.report and summary.report.stat().st_mtime_ns == before


def test_a_report_that_cannot_be_made_does_not_fail_the_run(experiment: Experiment) -> None:
    experiment.out.mkdir(parents=True)
    (experiment.out / "report").write_text("a file is in the way")
    summary = experiment.run(only=("base",), report=True)
    assert summary.exit_code == 0 and summary.report is None
    assert any("report could not be made" in message for message in experiment.listener.messages)


def test_events_tell_the_story(experiment: Experiment) -> None:
    experiment.run(only=("base",))
    events = [json.loads(line) for line in (experiment.out / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "run_started",
        "stage_started",
        "stage_done",
        "run_finished",
    ]
    (experiment.out / "events.jsonl").write_text("{}\n{torn\n{}\n")
    with pytest.raises(IntegrityError, match=r"events\.jsonl:2"):
        experiment.status()
