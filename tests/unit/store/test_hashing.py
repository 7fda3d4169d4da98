from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from prefopt.store import hashing
from prefopt.store.hashing import HashCache

OLD_NS = 1_600_000_000_000_000_000


def aged(path: Path, content: str) -> Path:
    path.write_text(content)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    original = hashing.sha256_file
    monkeypatch.setattr(hashing, "sha256_file", lambda path: read.append(path) or original(path))
    return read


def test_an_unchanged_file_is_read_once_also_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted(monkeypatch)
    path = aged(tmp_path / "file", "content")
    cache = HashCache(tmp_path / "cache.json")
    assert cache.file(path) == cache.file(path) == hashlib.sha256(b"content").hexdigest()
    cache.save()
    HashCache(tmp_path / "cache.json").file(path)
    assert read == [path]


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_is_read_again(tmp_path: Path, change: str) -> None:
    path = aged(tmp_path / "file", "content")
    cache = HashCache(None)
    before = cache.file(path)
    if change == "size":
        aged(path, "contents")
    elif change == "time":
        path.write_text("CONTENT")
    else:
        aged(tmp_path / "other", "CONTENT")
        os.replace(tmp_path / "other", path)
    assert cache.file(path) == hashlib.sha256(path.read_bytes()).hexdigest() != before


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_a_file_of_this_moment_or_the_future_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    # Its content may change once more without its time changing.
    read = counted(monkeypatch)
    path = tmp_path / "file"
    path.write_text("content")
    os.utime(path, (time.time() + seconds,) * 2)
    cache = HashCache(None)
    cache.file(path)
    cache.file(path)
    assert len(read) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3, "short"]}'])
def test_a_torn_cache_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "cache.json").write_text(content)
    path = aged(tmp_path / "file", "content")
    assert HashCache(tmp_path / "cache.json").file(path) == hashlib.sha256(b"content").hexdigest()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = HashCache(tmp_path / "file" / "cache.json")
    cache.file(aged(tmp_path / "other", "content"))
    cache.save()
    assert (tmp_path / "file").read_text() == ""


def test_two_caches_on_one_file_keep_what_both_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = aged(tmp_path / "a", "a"), aged(tmp_path / "b", "b")
    first, second = HashCache(tmp_path / "cache.json"), HashCache(tmp_path / "cache.json")
    first.file(a)
    second.file(b)
    first.save()
    second.save()
    read = counted(monkeypatch)
    third = HashCache(tmp_path / "cache.json")
    third.file(a)
    third.file(b)
    assert read == []


def test_a_tree_is_its_paths_and_contents_and_nothing_else(tmp_path: Path) -> None:
    def make(name: str, entries: dict[str, str]) -> Path:
        for path, content in entries.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content)
        return tmp_path / name

    cache = HashCache(None)
    same = cache.tree(make("one", {"a": "1", "b/c": "2"}))
    assert same == cache.tree(make("two", {"b/c": "2", "a": "1"}))
    others = ({"a": "1", "b/d": "2"}, {"a": "1", "b/c": "3"}, {"a": "1"}, {"a": "1", "b/c": "2", "e": ""})
    assert same not in {cache.tree(make(f"other{index}", entries)) for index, entries in enumerate(others)}
