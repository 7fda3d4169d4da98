"""A run folder that cannot be written ends a run before any model is loaded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import Experiment
from tests.faults.test_t06_full_disk import small_disk  # noqa: F401  (a fixture)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path / "experiment")


@pytest.fixture
def read_only(small_disk: Path) -> Iterator[Path]:  # noqa: F811
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


def refused(experiment: Experiment) -> str:
    ended = experiment.run()
    assert "prefopt.errors.EnvironmentFault: " in ended.error, ended
    assert "torch" not in ended.error  # nothing of a model was asked for
    return ended.error.rpartition("EnvironmentFault: ")[2]


def test_t07_a_file_in_the_place_of_the_folder(experiment: Experiment, tmp_path: Path) -> None:
    experiment.out = tmp_path / "file"
    experiment.out.write_text("")
    assert f"cannot write {experiment.out}: a part of the path is not a directory" in refused(experiment)


def test_t07_a_folder_below_a_file(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    experiment.out = tmp_path / "file" / "run"
    assert f"cannot write {experiment.out}" in refused(experiment)


def test_t07_a_file_system_that_is_read_only(experiment: Experiment, read_only: Path) -> None:
    experiment.out = read_only / "run"
    assert f"cannot write {experiment.out}: the file system is read-only" in refused(experiment)


def test_t07_a_run_folder_that_became_read_only(experiment: Experiment, small_disk: Path) -> None:  # noqa: F811
    experiment.out = small_disk / "run"
    experiment.out.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "the file system is read-only" in refused(experiment)


def test_t07_where_it_can_be_written_the_run_goes_on(experiment: Experiment) -> None:
    """What the rows above find is the folder, and nothing else."""
    ended = experiment.run(dry_run=True)
    assert not ended.error and ended.value["exit_code"] == 0
    shutil.rmtree(experiment.directory)
