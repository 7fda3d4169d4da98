"""The disk is full: at any operation of a stage, for good from any operation on, really, and before anything begins."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.pipeline import preflight
from prefopt.store import checkpoints
from prefopt.store.checkpoints import newest_verified, read_checkpoint
from tests.faults.conftest import Count
from tests.faults.injection import fail, some
from tests.faults.runs import STAGES, Experiment, Strike

FEW = 2


@pytest.fixture
def start(whole: Experiment, tmp_path: Path) -> Experiment:
    """What `sft` reads."""
    return whole.copy(tmp_path / "start", STAGES[1:])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory whose size a test sets."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def whole_checkpoint(experiment: Experiment) -> None:
    """Whatever is called a checkpoint after the fault verifies."""
    folder = experiment.folder("sft") / "checkpoints" if (experiment.out / "stages" / "sft").is_dir() else None
    for found in checkpoints.checkpoints(folder) if folder else ():
        read_checkpoint(found)


def sweep(start: Experiment, folder: Path, few: int | None, *, for_good: bool) -> tuple[int, int]:
    """Fails operations of sft's process; the number of faults, and of those that the run did without."""
    experiment = start.copy(folder)
    found = experiment.operations("sft", only=("sft",))
    expected = experiment.results(("sft",))
    points, unharmed = some(len(found), few), 0
    for number in points:
        shutil.rmtree(experiment.out / "stages" / "sft")
        ended = experiment.run(Strike("sft", number, fail(errno.ENOSPC, for_good=for_good)), only=("sft",))
        where = f"no space at {number}: {found[number]}"
        assert not ended.error, f"{where}\n{ended.error}"
        if ended.value["errors"]:
            code, said = ended.value["errors"]["sft"]
            assert code == 3 and "cannot write" in said and "no space left" in said, f"{where}\n{said}"
            assert str(experiment.out) in said and "bytes are free" in said, f"{where}\n{said}"
        else:
            unharmed += 1
        whole_checkpoint(experiment)
        again = experiment.run(only=("sft",))
        assert not again.error and again.value["exit_code"] == 0, f"{where}\n{again}"
        assert experiment.results(("sft",)) == expected, where
    return len(points), unharmed


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_t06_no_space_at_some_operations(start: Experiment, tmp_path: Path, for_good: bool) -> None:
    assert sweep(start, tmp_path / "copy", FEW, for_good=for_good)[0] == FEW


@pytest.mark.sweep
@pytest.mark.parametrize("for_good", [False, True])
def test_t06_no_space_at_every_operation(start: Experiment, tmp_path: Path, for_good: bool, count: Count) -> None:
    tried, unharmed = sweep(start, tmp_path / "copy", 30, for_good=for_good)
    assert unharmed < tried / 2
    count("T6", "operations refused for want of space" + (", and all after" if for_good else ""), tried)


def no_estimate() -> None:
    preflight.STAGE_BYTES = 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [pytest.param(0.3, marks=pytest.mark.sweep), 0.6, 0.85])
def test_t06_a_disk_that_is_really_full(start: Experiment, tmp_path: Path, small_disk: Path, share: float) -> None:
    """Writers in native code meet it as well."""
    experiment = start.copy(tmp_path / "copy")
    run = small_disk / "faults"
    shutil.copytree(experiment.out, run)
    shutil.rmtree(experiment.out)
    experiment.out, experiment.prepare = run, no_estimate
    before = used(small_disk)
    assert experiment.run(only=("sft",)).value["exit_code"] == 0
    needed, expected = used(small_disk) - before, experiment.results(("sft",))
    shutil.rmtree(run / "stages" / "sft")
    resize(small_disk, used(small_disk) + int(share * needed))
    ended = experiment.run(only=("sft",))
    assert not ended.error, ended.error
    code, said = ended.value["errors"]["sft"]
    assert code == 3 and "cannot write" in said and "no space left" in said and str(small_disk) in said, said
    whole_checkpoint(experiment)
    resize(small_disk, 64 << 20)
    assert experiment.run(only=("sft",)).value["exit_code"] == 0
    assert experiment.results(("sft",)) == expected


def used(disk: Path) -> int:
    return shutil.disk_usage(disk).used


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.slow
def test_t06_a_limit_on_the_size_of_files(start: Experiment, tmp_path: Path) -> None:
    """As a quota does: writes beyond it fail with EFBIG."""
    experiment = start.copy(tmp_path / "copy")
    assert experiment.run(only=("sft",)).value["exit_code"] == 0
    largest = max(path.stat().st_size for path in (experiment.out / "stages" / "sft").rglob("*") if path.is_file())
    shutil.rmtree(experiment.out / "stages" / "sft")
    experiment.prepare = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))
    ended = experiment.run(only=("sft",))
    assert not ended.error, ended.error
    code, said = ended.value["errors"]["sft"]
    assert code == 3 and "cannot write" in said, said
    experiment.prepare = lambda: None
    assert experiment.run(only=("sft",)).value["exit_code"] == 0


def test_t06_too_little_room_is_found_before_anything_runs(start: Experiment, tmp_path: Path, small_disk: Path) -> None:
    resize(small_disk, 1 << 20)
    experiment = start.copy(tmp_path / "copy")
    shutil.rmtree(experiment.out)
    experiment.out = small_disk / "run"
    ended = experiment.run()
    assert "EnvironmentFault" in ended.error and "has too little room: this run needs at least" in ended.error
    assert "bytes are free" in ended.error and not (small_disk / "run" / "stages").exists()


def test_t06_a_torn_checkpoint_that_is_believed_would_be_noticed(tmp_path: Path) -> None:
    torn = tmp_path / "checkpoint-1"
    torn.mkdir()
    (torn / "weights").write_bytes(os.urandom(8))
    said: list[str] = []
    assert newest_verified(tmp_path, said.append) is None
    assert said and (tmp_path / "checkpoint-1.torn").is_dir()
