"""A cache entry is what was written or is made again: faults are real ones, made on the disk and with kills."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.errors import EnvironmentFault
from prefopt.store import entries
from prefopt.store.entries import ENTRY, entry, verifies

CONTENT = {"tokens.i32": bytes(range(256)) * 50, "empty": b""}


class Maker:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        for name, content in CONTENT.items():
            (folder / name).write_bytes(content)


def found(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ENTRY}


def wanted(root: Path) -> tuple[Maker, list[str], Path]:
    make, lines = Maker(), list[str]()
    return make, lines, entry(root, "key", make, lines.append)


def test_it_is_made_once(tmp_path):
    make, lines, folder = wanted(tmp_path / "cache")
    assert entry(tmp_path / "cache", "key", make, lines.append) == folder == tmp_path / "cache" / "key"
    assert make.times == 1 and lines == [] and found(folder) == CONTENT
    assert entry(tmp_path / "cache", "other", make, lines.append) != folder and make.times == 2


def truncate(folder: Path) -> None:
    os.truncate(folder / "tokens.i32", 1000)


def flip(folder: Path) -> None:
    content = bytearray((folder / "tokens.i32").read_bytes())
    content[777] ^= 1
    (folder / "tokens.i32").write_bytes(content)


def lose(folder: Path) -> None:
    (folder / "empty").unlink()


def add(folder: Path) -> None:
    (folder / "more").write_bytes(b"")


def tear_the_note(folder: Path) -> None:
    os.truncate(folder / ENTRY, (folder / ENTRY).stat().st_size // 2)


def empty_the_note(folder: Path) -> None:
    (folder / ENTRY).write_text("[]")


def lose_the_note(folder: Path) -> None:
    (folder / ENTRY).unlink()


def put_a_file_in_its_place(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_bytes(b"x")


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, lose, add, tear_the_note, empty_the_note, lose_the_note, put_a_file_in_its_place],
    ids=lambda damage: damage.__name__,
)
def test_what_is_damaged_is_made_again_and_never_an_error(tmp_path: Path, damage: Callable[[Path], None]):
    _, _, folder = wanted(tmp_path)
    damage(folder)
    assert not verifies(folder)
    make, lines, again = wanted(tmp_path)
    assert make.times == 1 and lines == [f"{folder} is damaged and made again"]
    assert again == folder and found(folder) == CONTENT and verifies(folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("step", ["make", "write_json", "fsync_tree", "fsync_file"])
def test_a_process_that_is_killed_between_leaves_nothing_that_is_believed(tmp_path, monkeypatch, step):
    def half(folder: Path) -> None:
        (folder / "tokens.i32").write_bytes(b"half")
        if step == "make":
            die()
        Maker()(folder)

    def killed() -> None:
        if step != "make":
            monkeypatch.setattr(entries, step, die)
        entry(tmp_path, "key", half, print)

    assert in_child(killed) == -signal.SIGKILL
    complete = step == "fsync_file"  # after the rename, before it was forced to the disk
    assert verifies(tmp_path / "key") is complete
    make, lines, folder = wanted(tmp_path)
    assert make.times == (not complete) and lines == [] and found(folder) == CONTENT
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def _slowly(root: Path, started: Path) -> None:
    def make(folder: Path) -> None:
        with started.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        Maker()(folder)

    found_in = entry(root, "key", make, lambda line: None)
    assert found(found_in) == CONTENT


def test_several_processes_at_once_make_it_once_and_all_end_well(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_slowly, args=(tmp_path / "cache", tmp_path / "made")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "made").read_text() == "made\n"


def test_who_waits_for_a_process_that_dies_makes_it(tmp_path):
    def dies(folder: Path) -> None:
        (tmp_path / "in").touch()
        time.sleep(30)

    context = multiprocessing.get_context("fork")
    other = context.Process(target=entry, args=(tmp_path / "cache", "key", dies, print))
    other.start()
    while not (tmp_path / "in").exists():
        time.sleep(0.01)
    lines: list[str] = []

    def told(line: str) -> None:
        lines.append(line)
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)

    folder = entry(tmp_path / "cache", "key", Maker(), told)
    other.join(30)
    assert lines == [f"waiting for another process, which makes {folder}"] and found(folder) == CONTENT


def test_what_goes_wrong_while_it_is_made_is_raised_and_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "tokens.i32").write_bytes(b"half")
        raise EnvironmentFault("the disk is full")

    with pytest.raises(EnvironmentFault, match="the disk is full"):
        entry(tmp_path, "key", fail, print)
    assert {path.name for path in tmp_path.iterdir()} <= {".key.lock"}
