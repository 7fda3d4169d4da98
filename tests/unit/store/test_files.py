from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from prefopt.errors import EnvironmentFault, IntegrityError
from prefopt.store import files


def test_an_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    files.write_atomic(path, "äöü")
    files.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    plain = path.with_name("plain")
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match=rf"cannot write {path}: no space .*: needs 1000 bytes, \d+ bytes are"):
        files.write_atomic(path, "x" * 1000)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_path_through_a_file_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="not a directory"):
        files.write_atomic(tmp_path / "file" / "below", "x")


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_json_is_strict_when_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "file", value)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'{"a": NaN}', b"[Infinity]", b"\xff", b"[" * 100_000])
def test_json_is_strict_when_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=str(path)):
        files.read_json(path)


def test_json_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"x": 1, "y": {"p": 2, "q": 3}})
    files.write_json(tmp_path / "b", {"y": {"q": 3, "p": 2}, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.sha256_json({"x": 1, "y": 2}) == files.sha256_json({"y": 2, "x": 1})


def test_a_torn_last_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    files.append_json_line(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": 2, "to')
    assert files.read_json_lines(path) == [{"n": 1}]
    files.append_json_line(path, {"n": 3})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_torn_middle_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(IntegrityError, match=f"{path}:2"):
        files.read_json_lines(path)


def test_setting_aside_never_overwrites(tmp_path: Path) -> None:
    names = []
    for content in "abc":
        (tmp_path / "x").write_text(content)
        names.append(files.set_aside(tmp_path / "x", "torn").name)
    assert names == ["x.torn", "x.torn-2", "x.torn-3"]
    assert (tmp_path / "x.torn-2").read_text() == "b"
