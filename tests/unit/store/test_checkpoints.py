"""Saves are interrupted at every file operation there is; whatever is found afterwards must be whole."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.errors import EnvironmentFault, IntegrityError
from prefopt.store import manifest as manifests
from prefopt.store.checkpoints import checkpoints, commit_checkpoint, newest_verified, read_checkpoint, rotate
from prefopt.store.manifest import Manifest

_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree")


class Fault(BaseException):
    """Stands for the end of the process: nothing in the package may catch it."""


class Saboteur:
    """Raises at the n-th file operation below a folder. An audit hook stays for good: one, asleep."""

    def __init__(self) -> None:
        self.folder = ""
        self.left = -1
        self.error: Callable[[], BaseException] = Fault
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.left < 0 or event not in _OPERATIONS or not str(arguments[0]).startswith(self.folder):
            return
        self.left -= 1
        if self.left < 0:
            raise self.error()

    def strike(self, folder: Path, number: int, action: Callable[[], object]) -> bool:
        """Whether the n-th operation was reached, and so failed."""
        self.folder, self.left = str(folder), number
        try:
            action()
        except (Fault, EnvironmentFault):
            return True
        finally:
            reached, self.left = self.left < 0, -1
        # An operation inside a destructor or a suppressed cleanup is reached without anything being raised here.
        return reached

    def kill(self, folder: Path, number: int, action: Callable[[], object]) -> bool:
        """As `strike`, with a process of its own that is killed there: nothing is cleaned up."""
        child = os.fork()
        if child == 0:
            self.error = lambda: os.kill(os.getpid(), signal.SIGKILL) or Fault()
            self.strike(folder, number, action)
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])


SABOTEUR = Saboteur()
Strike = Callable[[Path, int, Callable[[], object]], bool]


def write(folder: Path, step: int, content: str = "") -> Path:
    staging = folder / f"tmp-{step}" / f"checkpoint-{step}"
    (staging / "sub").mkdir(parents=True)
    (staging / "weights").write_text(content or f"weights {step}")
    (staging / "sub" / "state.json").write_text("{}")
    return staging


def save(folder: Path, step: int, content: str = "") -> Path:
    final = folder / f"checkpoint-{step}"
    commit_checkpoint(write(folder, step, content), final, step, {"loss": 0.5})
    shutil.rmtree(folder / f"tmp-{step}")
    return final


def unexpected(text: str) -> None:
    raise AssertionError(text)


def test_a_checkpoint_is_what_was_saved(tmp_path: Path) -> None:
    final = save(tmp_path, 10)
    checkpoint = read_checkpoint(final)
    assert checkpoint.step == 10 and checkpoint.extra == {"loss": 0.5}
    assert [output.path for output in checkpoint.outputs] == ["sub/state.json", "weights"]
    assert newest_verified(tmp_path, unexpected) == final


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_verified(tmp_path / "none", unexpected) is None
    assert newest_verified(tmp_path, unexpected) is None


def test_order_is_by_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    for step, time in ((9, 3_000_000_000), (100, 1), (20, 1)):
        os.utime(tmp_path / f"checkpoint-{step}", (time, time))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert newest_verified(tmp_path, unexpected) == tmp_path / "checkpoint-100"
    rotate(tmp_path, 1, {tmp_path / "checkpoint-9"})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-100"]


def test_rotation_keeps_at_least_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    rotate(tmp_path, 0, set())
    assert newest_verified(tmp_path, unexpected) == tmp_path / "checkpoint-1"


@pytest.mark.parametrize("name", ["weights", "sub/state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["empty", "half", "one byte less", "flip", "gone"])
def test_a_torn_checkpoint_is_skipped_told_and_kept_aside(tmp_path: Path, name: str, damage: str) -> None:
    good, torn = save(tmp_path, 9), save(tmp_path, 10)
    content = bytearray((torn / name).read_bytes())
    content[len(content) // 2] ^= 1 if damage == "flip" else 0
    sizes = {"empty": 0, "half": len(content) // 2, "one byte less": len(content) - 1, "flip": len(content)}
    (torn / name).unlink()
    if damage != "gone":
        # The last byte of the manifest is a newline, without which it is still whole.
        (torn / name).write_bytes(content[: sizes[damage] - (damage == "one byte less" and name == "manifest.json")])
    said: list[str] = []
    assert newest_verified(tmp_path, said.append) == good
    assert len(said) == 1 and str(torn / name) in said[0] and "checkpoint-10.torn" in said[0]
    assert (tmp_path / "checkpoint-10.torn").is_dir() and not torn.exists()
    # The next save of that step is a new timeline, and the torn one never comes back.
    save(tmp_path, 10, "new")
    assert newest_verified(tmp_path, unexpected) == torn
    assert (torn / "weights").read_text() == "new"


def test_a_checkpoint_with_something_added_or_renamed_is_not_believed(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    (first / "optimizer.pt").write_text("pickle")
    with pytest.raises(IntegrityError, match=r"optimizer\.pt is not in"):
        read_checkpoint(first)
    second = save(tmp_path, 2)
    second.rename(tmp_path / "checkpoint-7")
    with pytest.raises(IntegrityError, match="holds the checkpoint of step 2"):
        read_checkpoint(tmp_path / "checkpoint-7")


def test_a_name_that_contradicts_the_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step 3"):
        commit_checkpoint(write(tmp_path, 3), tmp_path / "checkpoint-4", 3, {})


def sweep(
    tmp_path: Path,
    prepare: Callable[[Path], object],
    action: Callable[[Path], object],
    allowed: set[str],
    strike: Strike = SABOTEUR.strike,
) -> int:
    """Interrupts an action at its first, second, … file operation; a whole checkpoint is found after each."""
    for number in range(500):
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare(folder)
        struck = strike(folder, number, lambda folder=folder: action(folder))
        found = newest_verified(folder, lambda text: None)
        assert found is not None, f"nothing left after operation {number}"
        assert (found / "weights").read_text() in allowed
        assert not list(folder.glob("tmp-*")) and not list(folder.glob("*.replaced"))
        assert not list(folder.glob("*.torn")), f"operation {number} left a torn checkpoint under a believed name"
        assert newest_verified(folder, unexpected) == found
        if not struck:
            return number
    raise AssertionError("the action never came to its end")


def commit(folder: Path) -> None:
    commit_checkpoint(folder / "tmp-10" / "checkpoint-10", folder / "checkpoint-10", 10, {})


@pytest.mark.parametrize("error", [Fault, lambda: OSError(28, "No space left on device")])
def test_a_save_interrupted_anywhere_leaves_a_whole_checkpoint(
    tmp_path: Path, error: Callable[[], BaseException]
) -> None:
    SABOTEUR.error = error
    allowed = {"weights 9", "weights 10"}
    assert sweep(tmp_path, lambda folder: (save(folder, 9), write(folder, 10)), commit, allowed) > 8


def test_a_save_killed_anywhere_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    allowed = {"weights 9", "weights 10"}
    assert sweep(tmp_path, lambda folder: (save(folder, 9), write(folder, 10)), commit, allowed, SABOTEUR.kill) > 8


def test_replacing_the_only_checkpoint_killed_anywhere_keeps_one(tmp_path: Path) -> None:
    allowed = {"weights 10", "new"}
    made = sweep(tmp_path, lambda folder: (save(folder, 10), write(folder, 10, "new")), commit, allowed, SABOTEUR.kill)
    assert made > 10


def test_rotation_killed_anywhere_keeps_the_newest(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        for step in (1, 2, 3):
            save(folder, step)

    assert sweep(tmp_path, prepare, lambda folder: rotate(folder, 1, set()), {"weights 3"}, SABOTEUR.kill) >= 4


def test_the_commit_of_an_artefact_killed_anywhere_is_whole_or_not_there(tmp_path: Path) -> None:
    committed = 0
    for number in range(500):
        folder = tmp_path / str(number)
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "weights").write_text("w")
        header = Manifest("sft", "sft", "a" * 64, 0)
        killed = SABOTEUR.kill(folder, number, lambda: manifests.commit(folder, header, ["adapter"]))  # noqa: B023
        if (folder / manifests.MANIFEST).exists():
            assert manifests.verify(folder, full=True).outputs[0].path == "adapter/weights"
            committed += 1
        if not killed:
            break
    assert number > 4 and 1 <= committed < number
