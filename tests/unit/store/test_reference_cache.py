"""What a reference said is found again, and what is damaged is not there."""

from __future__ import annotations

import hashlib
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from prefopt.errors import EnvironmentFault
from prefopt.store.reference_cache import ReferenceCache

ROWS = {hashlib.sha256(bytes([i])).digest(): (float(i), -i / 3, float("-inf")) for i in range(200)}


def write(file: Path, keys: list[bytes]) -> None:
    ReferenceCache(file).write({key: ROWS[key] for key in keys})


def test_rows_come_back_to_the_last_bit(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "cache.sqlite3"
    assert ReferenceCache(file).read(list(ROWS)) == {} and not file.exists()
    keys = list(ROWS)
    write(file, keys[:150])
    assert ReferenceCache(file).read(keys) == {key: ROWS[key] for key in keys[:150]}
    write(file, keys[100:])
    assert ReferenceCache(file).read(keys) == ROWS


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_flipped_bit_is_never_believed(tmp_path: Path, share: float) -> None:
    file = tmp_path / "cache.sqlite3"
    write(file, list(ROWS))
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 1
    file.write_bytes(bytes(data))
    lines: list[str] = []
    cache = ReferenceCache(file, lines.append)
    found = cache.read(list(ROWS))
    assert all(found[key] == ROWS[key] for key in found)
    cache.write(ROWS)
    assert cache.read(list(ROWS)) == ROWS


def test_numbers_that_were_changed_in_place_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite3"
    write(file, list(ROWS))
    first, second, third, *_ = ROWS
    with sqlite3.connect(file) as db:
        (numbers,) = db.execute("SELECT numbers FROM rows WHERE key = ?", (first,)).fetchone()
        db.execute("UPDATE rows SET numbers = ? WHERE key = ?", (numbers[:-1] + b"\x7f", first))
        db.execute("UPDATE rows SET numbers = ? WHERE key = ?", (numbers, second))  # another row's
        db.execute("UPDATE rows SET numbers = 'text' WHERE key = ?", (third,))
    found = ReferenceCache(file).read(list(ROWS))
    assert found == {key: row for key, row in ROWS.items() if key not in (first, second, third)}


@pytest.mark.parametrize("kept", [0.0, 0.4])
def test_a_torn_file_is_begun_again(tmp_path: Path, kept: float) -> None:
    file = tmp_path / "cache.sqlite3"
    write(file, list(ROWS))
    data = file.read_bytes()
    file.write_bytes(b"not a database at all, " * 100 if kept == 0 else data[: int(kept * len(data))])
    cache = ReferenceCache(file)
    assert all(row == ROWS[key] for key, row in cache.read(list(ROWS)).items())
    cache.write(ROWS)
    assert cache.read(list(ROWS)) == ROWS


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    file, keys = tmp_path / "cache.sqlite3", list(ROWS)
    context = multiprocessing.get_context("spawn")
    parts = [keys[:120], keys[80:]]
    writers = [context.Process(target=write, args=(file, part)) for part in parts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert ReferenceCache(file).read(keys) == ROWS


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite3").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot be used"):
        ReferenceCache(tmp_path / "cache.sqlite3").write(ROWS)
