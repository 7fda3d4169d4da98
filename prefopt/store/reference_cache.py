"""What a frozen reference says of rows, kept in the cache: it never changes, and other runs and seeds ask again.

One SQLite file for each reference, a row for each pair, written batch by batch: a pass that was interrupted goes on
where it was. Whatever is damaged is computed again, and never believed: every row has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefopt.errors import EnvironmentFault
from prefopt.store.files import make_folder

_KEYS_AT_ONCE = 500  # SQLite's limit on variables of a statement is 999 in old versions
_DIGEST = 8


class ReferenceCache:
    """Numbers by row.

    Args:
        file: Of this reference; made where it is missing.
        log: Takes a line when the file is damaged and begun again.

    Raises:
        EnvironmentFault: When it cannot be written.
    """

    def __init__(self, file: Path, log: Callable[[str], None] = lambda line: None) -> None:
        self._file = file
        self._log = log

    def read(self, keys: Sequence[bytes]) -> dict[bytes, tuple[float, ...]]:
        """The numbers of the rows among the keys that are there and whole."""
        found: dict[bytes, tuple[float, ...]] = {}
        if not self._file.is_file():
            return found
        try:
            with self._open() as db:
                for start in range(0, len(keys), _KEYS_AT_ONCE):
                    some = keys[start : start + _KEYS_AT_ONCE]
                    places = ",".join("?" * len(some))
                    for key, values in db.execute(f"SELECT key, numbers FROM rows WHERE key IN ({places})", some):
                        numbers = _unpacked(key, values)
                        if numbers is not None:
                            found[key] = numbers
        except sqlite3.DatabaseError as error:
            self._begin_again(error)
            return {}
        return found

    def write(self, rows: Mapping[bytes, Sequence[float]]) -> None:
        """Add rows in one transaction."""
        make_folder(self._file.parent)
        packed = [(key, _packed(key, numbers)) for key, numbers in rows.items()]
        try:
            self._insert(packed)
        except sqlite3.DatabaseError as error:
            self._begin_again(error)
            try:
                self._insert(packed)
            except sqlite3.DatabaseError as again:
                raise EnvironmentFault(f"{self._file} cannot be written: {again}") from again

    def _insert(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", rows)
            db.execute("COMMIT")

    def _begin_again(self, error: sqlite3.DatabaseError) -> None:
        # Locked, full or not to be opened is no damage; the caller hears of it when it writes.
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            raise EnvironmentFault(f"{self._file} cannot be used: {error}") from error
        self._log(f"{self._file} is damaged and begun again")
        for suffix in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._file, isolation_level=None, timeout=60)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")  # after a crash the last rows may be missing, and are made again
            db.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, numbers BLOB NOT NULL) WITHOUT ROWID")
            yield db
        finally:
            db.close()


def _packed(key: bytes, numbers: Sequence[float]) -> bytes:
    values = struct.pack(f"<{len(numbers)}d", *numbers)
    return _digest(key, values) + values


def _unpacked(key: object, packed: object) -> tuple[float, ...] | None:
    if not isinstance(key, bytes) or not isinstance(packed, bytes):
        return None
    digest, values = packed[:_DIGEST], packed[_DIGEST:]
    if digest != _digest(key, values) or len(values) % 8:
        return None
    return struct.unpack(f"<{len(values) // 8}d", values)


def _digest(key: bytes, values: bytes) -> bytes:
    return hashlib.sha256(key + values).digest()[:_DIGEST]
