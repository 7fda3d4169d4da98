"""What was sampled and judged in a run, kept for good: sampling costs time, and people and paid judges cost money.

The ledger lies in `runs/NAME/ledger/`, outside every stage's folder: a collect stage is a view of it. A row is known by
a hash of everything that decides it, so a restart, or another stage, finds it and nothing is sampled or judged twice.

It is one SQLite file in WAL mode: a transaction is there as a whole or not at all, however the process ends. SQLite
finds damage of its own structure only, so every row carries a hash of itself.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from prefopt.errors import EnvironmentFault, IntegrityError
from prefopt.records import Prompt
from prefopt.store.files import make_folder

LEDGER_FILE = "ledger.sqlite3"
SCHEMA_VERSION = 3
_WITHOUT_IDS = 2  # what was sampled then has its text alone
_KEYS_AT_ONCE = 500  # SQLite's limit on variables of a statement is 999 in old versions
# As they are read and written; a ledger that was made without ids has them in another order.
_COLUMNS = {
    "samples": "key, prompt, completion, finished, tokens, policy, ids, stage, created, checksum",
    "scores": "key, judge, value, std, stage, created, checksum",
    "judgements": "key, prompt, first, second, probability, judge, question, stage, created, checksum",
}
_SCHEMA = """
CREATE TABLE samples (
    key TEXT PRIMARY KEY, prompt TEXT NOT NULL, completion TEXT NOT NULL, finished INTEGER NOT NULL,
    tokens INTEGER NOT NULL, policy TEXT NOT NULL, stage TEXT NOT NULL, created TEXT NOT NULL,
    checksum TEXT NOT NULL, ids TEXT
) WITHOUT ROWID;
CREATE TABLE scores (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, value REAL NOT NULL, std REAL NOT NULL, stage TEXT NOT NULL,
    created TEXT NOT NULL, checksum TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE judgements (
    key TEXT PRIMARY KEY, prompt TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, probability REAL,
    judge TEXT NOT NULL, question TEXT NOT NULL, stage TEXT NOT NULL, created TEXT NOT NULL,
    checksum TEXT NOT NULL
) WITHOUT ROWID;
"""


def canonical_prompt(prompt: Prompt) -> str:
    """A prompt as JSON, the same for the same messages."""
    return json.dumps([[message.role, message.content] for message in prompt], ensure_ascii=False)


def key_of(*parts: object) -> str:
    """Sha256 of parts that JSON can hold, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode("utf-8")).hexdigest()


def judgement_key(prompt: Prompt, first: str, second: str, question: str, judge: object) -> tuple[str, bool]:
    """Key of a judgement, the same whichever completion is named first.

    Returns:
        The key, and whether the judgement's probability is that of `first` (else of `second`).
    """
    in_order = first <= second
    low, high = (first, second) if in_order else (second, first)
    return key_of("judgement", canonical_prompt(prompt), low, high, question, judge), in_order


@dataclass(frozen=True)
class StoredSample:
    """A completion in the ledger.

    Attributes:
        completion: Its text.
        finished: Whether the policy ended it.
        tokens: How long it is, the end token included.
        ids: Those tokens; empty where they were not kept.
    """

    completion: str
    finished: bool
    tokens: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class StoredJudgement:
    """A judgement in the ledger, so that it can be read without what asked for it.

    Attributes:
        prompt: What was answered.
        first: The completion that comes first in alphabetical order.
        second: The other.
        probability: That the first is preferred; None is an abstention.
    """

    prompt: Prompt
    first: str
    second: str
    probability: float | None


def _real(value: float | None) -> float | None:
    """A number as SQLite gives it back."""
    return None if value is None else float(value)


def _checksum(table: str, row: Sequence[object]) -> str:
    """Hash of a row. A sample without ids has the one that it had before there were any."""
    return key_of(*(each for each in row if each is not None) if table == "samples" else row)


class Ledger:
    """The ledger of a run; a context manager.

    Args:
        folder: `runs/NAME/ledger`; made where it is missing.
        stage: Name of the stage that writes, kept with every row.

    Raises:
        IntegrityError: When the file is no ledger, damaged, or of another version.
        EnvironmentFault: When it cannot be opened or written.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        make_folder(folder)
        self.path = folder / LEDGER_FILE
        self._stage = stage
        with self._faults():
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version == _WITHOUT_IDS:
                add = "ALTER TABLE samples ADD COLUMN ids TEXT"
                self._db.executescript(f"BEGIN IMMEDIATE; {add}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise IntegrityError(
                    f"{self.path}: written by another version of prefopt (ledger {version}, this is {SCHEMA_VERSION})",
                    "use that version, or move the file away: everything is then sampled and judged anew",
                )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def samples(self, keys: Sequence[str]) -> dict[str, StoredSample]:
        """The samples among the keys that are there."""
        rows = self._select("samples", keys)
        return {
            key: StoredSample(text, bool(done), tokens, () if ids is None else tuple(json.loads(ids)))
            for key, _, text, done, tokens, _, ids, *_ in rows
        }

    def scores(self, keys: Sequence[str]) -> dict[str, float]:
        """The scores among the keys that are there."""
        return {key: value for key, _, value, *_ in self._select("scores", keys)}

    def judgements(self, keys: Sequence[str]) -> dict[str, float | None]:
        """The judgements among the keys that are there; None is an abstention."""
        return {row[0]: row[4] for row in self._select("judgements", keys)}

    def add_samples(self, policy: str, rows: Mapping[str, tuple[Prompt, StoredSample]]) -> None:
        """Add samples in one transaction; what is there already stays as it is.

        Args:
            policy: Name of the stage that answered.
            rows: By key.
        """
        self._insert(
            "samples",
            (
                (
                    *(key, canonical_prompt(prompt), sample.completion, int(sample.finished), sample.tokens, policy),
                    json.dumps(sample.ids) if sample.ids else None,
                )
                for key, (prompt, sample) in rows.items()
            ),
        )

    def add_scores(self, judge: str, rows: Mapping[str, tuple[float, float]]) -> None:
        """Add scores (value, deviation) by key in one transaction; what is there already stays as it is."""
        self._insert("scores", ((key, judge, float(value), float(std)) for key, (value, std) in rows.items()))

    def add_judgements(self, judge: str, question: str, rows: Mapping[str, StoredJudgement]) -> None:
        """Add judgements by key in one transaction; what is there already stays as it is."""
        self._insert(
            "judgements",
            (
                (key, canonical_prompt(row.prompt), row.first, row.second, _real(row.probability), judge, question)
                for key, row in rows.items()
            ),
        )

    def _select(self, table: str, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows of keys, each what was written.

        Raises:
            IntegrityError: For a row that has changed.
        """
        found: list[tuple[Any, ...]] = []
        with self._faults():
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                places = ",".join("?" * len(part))
                query = f"SELECT {_COLUMNS[table]} FROM {table} WHERE key IN ({places})"
                found += self._db.execute(query, list(part)).fetchall()
        for *row, checksum in found:
            # A damaged type of a column makes bytes of what was text.
            if any(isinstance(each, bytes) for each in row) or checksum != _checksum(table, row):
                raise self._damaged(f"a row of {table} has changed since it was written: {str(row[0])[:12]}…")
        return found

    def _insert(self, table: str, rows: Iterable[tuple[object, ...]]) -> None:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        stamped = [(*row, self._stage, created) for row in rows]
        complete = [(*row, _checksum(table, row)) for row in stamped]
        if not complete:
            return
        places = ",".join("?" * len(complete[0]))
        with self._faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(f"INSERT OR IGNORE INTO {table} ({_COLUMNS[table]}) VALUES ({places})", complete)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "decode" in str(error):
                raise self._damaged(str(error)) from error
            raise EnvironmentFault(
                f"{self.path}: {error}", "free some space, close other programs that use the file, and run again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, how: str) -> IntegrityError:
        return IntegrityError(
            f"{self.path}: damaged ({how})",
            "restore it from a copy, or move it away: everything is then sampled and judged anew",
        )
