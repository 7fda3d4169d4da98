"""Tokenised rows on disk: `TokenRows` reads a row when it is asked for one, and knows all lengths without reading any.

A folder holds the rows of one preparation: `tokens.i32` with the ids of all parts of all rows, one after another,
`bounds.i64` with where each part begins, a file for every further column, and for each set (`train`, `eval`) the
numbers of its rows. Everything is mapped, so the system reads what is used and takes memory back when it needs some.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from prefopt.errors import IntegrityError
from prefopt.store.files import disk_faults, fsync_file

LAYOUT = "layout.json"
TRAIN, EVAL = "train", "eval"
_TOKENS, _BOUNDS = "tokens.i32", "bounds.i64"
# Rows are written in blocks of this many.
_BLOCK = 1000
Lengths = npt.NDArray[np.int64]
Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """What rows are made of.

    Attributes:
        ids: Parts of token ids, in the order in which they lie on disk.
        numbers: Columns of finite numbers, or None.
        texts: Columns of text.
        documents: Columns of anything JSON can hold.
    """

    ids: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    def to_json(self) -> dict[str, list[str]]:
        """Plain data."""
        return {name: list(getattr(self, name)) for name in ("ids", "numbers", "texts", "documents")}


class TokenRows(Sequence[Mapping[str, Any]]):
    """Rows of a folder that `RowWriter` wrote; `rows[i]` is a dict as a list of rows would have it.

    Token ids come as lists of ints, numbers as floats or None. A slice is a list. Pickled, it is the folder's name and
    the order, so workers of a data loader map the same files.

    Args:
        folder: What `RowWriter` wrote.
        rows: Numbers of the rows in the order wanted; all of them when None.

    Raises:
        IntegrityError: When the folder's files are not as large as its layout says.
    """

    def __init__(self, folder: Path, rows: Order | None = None) -> None:
        self.folder = folder
        try:
            layout = json.loads((folder / LAYOUT).read_bytes())
            self.columns = Columns(**{name: tuple(names) for name, names in layout["columns"].items()})
            self._stored = int(layout["rows"])
            self._tokens: npt.NDArray[np.int32] = _mapped(folder / _TOKENS, np.int32)
            self._bounds = _mapped(folder / _BOUNDS, np.int64)
            self._numbers = {name: _mapped(folder / f"{name}.f64", np.float64) for name in self.columns.numbers}
            texts = (*self.columns.texts, *self.columns.documents)
            self._text_bytes = {name: _mapped(folder / f"{name}.utf8", np.uint8) for name in texts}
            self._text_bounds = {name: _mapped(folder / f"{name}.i64", np.int64) for name in texts}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{folder}: not a folder of tokenised rows ({error})") from error
        self._check_sizes()
        self._rows = np.arange(self._stored) if rows is None else rows

    @classmethod
    def of_set(cls, folder: Path, name: str) -> TokenRows:
        """The rows of a set that `RowWriter.add_set` wrote.

        Raises:
            IntegrityError: As the class.
        """
        try:
            return cls(folder, _mapped(folder / f"{name}.set.i64", np.int64))
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{folder}: the set '{name}' cannot be read ({error})") from error

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._row(int(row)) for row in self._rows[index]]
        return self._row(int(self._rows[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._row(int(row)) for row in self._rows)

    def __reduce__(self) -> tuple[type[TokenRows], tuple[Path, Order]]:
        return TokenRows, (self.folder, np.array(self._rows))

    def lengths(self, part: str) -> Lengths:
        """Tokens of a part of every row, [N], without reading tokens.

        Args:
            part: One of `columns.ids`, such as `prompt_ids`.
        """
        place, parts = self.columns.ids.index(part), len(self.columns.ids)
        starts = self._rows * parts + place
        found: Lengths = self._bounds[starts + 1] - self._bounds[starts]
        return found

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """A column of numbers, [N]; NaN where a row has None."""
        found: npt.NDArray[np.float64] = self._numbers[name][self._rows]
        return found

    def select(self, order: Order) -> TokenRows:
        """Some of these rows, in another order.

        Args:
            order: Numbers of rows of this sequence.
        """
        return TokenRows(self.folder, self._rows[order])

    def _row(self, row: int) -> dict[str, Any]:
        parts = len(self.columns.ids)
        bounds = self._bounds[row * parts : row * parts + parts + 1].tolist()
        ids = self._tokens[bounds[0] : bounds[-1]].tolist()
        first = bounds[0]
        found: dict[str, Any] = {
            name: ids[start - first : end - first]
            for name, start, end in zip(self.columns.ids, bounds, bounds[1:], strict=False)
        }
        for name, values in self._numbers.items():
            value = values[row].item()
            found[name] = None if math.isnan(value) else value
        for name in self.columns.texts:
            found[name] = self._text(name, row)
        for name in self.columns.documents:
            found[name] = json.loads(self._text(name, row))
        return found

    def _text(self, name: str, row: int) -> str:
        start, end = self._text_bounds[name][row : row + 2].tolist()
        return bytes(self._text_bytes[name][start:end]).decode("utf-8")

    def _check_sizes(self) -> None:
        """Offsets that lead outside would read nonsense."""
        ends = [(self._bounds, self._stored * len(self.columns.ids), len(self._tokens))]
        ends += [(bounds, self._stored, len(self._text_bytes[name])) for name, bounds in self._text_bounds.items()]
        fit = all(len(bounds) == count + 1 and bounds[-1] == end for bounds, count, end in ends)
        if not fit or any(len(values) != self._stored for values in self._numbers.values()):
            raise IntegrityError(f"{self.folder}: the files of tokenised rows do not fit each other")


class WithColumns(Sequence[Mapping[str, Any]]):
    """Rows with further columns, which are put into each row when it is asked for.

    Args:
        rows: In memory or on disk.
        columns: Values by name, as many as there are rows; they hide columns of the same name.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Sequence[Any]]) -> None:
        self.rows, self.columns = rows, dict(columns)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return {**self.rows[index], **{name: values[index] for name, values in self.columns.items()}}


def lengths_of(rows: Sequence[Mapping[str, Any]], part: str) -> list[int]:
    """Tokens of a part of every row; of rows on disk without reading any.

    Args:
        rows: In memory or on disk.
        part: Such as `prompt_ids`.
    """
    if isinstance(rows, WithColumns) and part not in rows.columns:
        return lengths_of(rows.rows, part)
    if isinstance(rows, TokenRows):
        found: list[int] = rows.lengths(part).tolist()
        return found
    return [len(row[part]) for row in rows]


def _mapped(path: Path, dtype: Any) -> Any:
    """A file as an array; what is empty cannot be mapped."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    # As an array: each access to a part of a memmap would make another memmap, which takes ten times as long.
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


class RowWriter:
    """Writes a folder for `TokenRows`, in the order in which rows are added, a block in memory at a time.

    Args:
        folder: Empty.
        columns: What the rows have.

    Raises:
        EnvironmentFault: When the disk is full or cannot be written to, as by every method.
    """

    def __init__(self, folder: Path, columns: Columns) -> None:
        self.folder, self.columns, self.rows = folder, columns, 0
        self._files: dict[str, BinaryIO] = {}
        self._ids: list[bytes] = []
        self._lengths: list[int] = []
        self._numbers: list[Sequence[float | None]] = []
        self._texts: list[Sequence[str]] = []
        self._ends = {name: 0 for name in (_BOUNDS, *columns.texts, *columns.documents)}
        for name in self._ends:
            self._write(name if name == _BOUNDS else f"{name}.i64", np.zeros(1, np.int64).tobytes())

    def add(self, ids: Sequence[bytes], numbers: Sequence[float | None] = (), texts: Sequence[str] = ()) -> None:
        """Adds a row.

        Args:
            ids: Its parts, packed as 32-bit numbers.
            numbers: As many as there are columns of numbers.
            texts: Texts, then documents as JSON.
        """
        self._ids += ids
        self._lengths += map(len, ids)
        self._numbers.append(numbers)
        self._texts.append(texts)
        self.rows += 1
        if len(self._numbers) == _BLOCK:
            self._flush()

    def add_set(self, name: str, rows: Iterable[Order]) -> None:
        """Writes the numbers of the rows of a set, in blocks."""
        self._write(f"{name}.set.i64", b"")
        for block in rows:
            self._write(f"{name}.set.i64", block.astype(np.int64).tobytes())

    def close(self) -> None:
        """Writes what is left, and forces all of it to the disk."""
        self._flush()
        for name in (_TOKENS, *(f"{n}.f64" for n in self.columns.numbers), *(f"{n}.utf8" for n in [*self._ends][1:])):
            self._write(name, b"")  # there without rows too
        layout = {"columns": self.columns.to_json(), "rows": self.rows}
        self._write(LAYOUT, json.dumps(layout).encode("ascii"))
        with disk_faults(self.folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            fsync_file(self.folder)

    def abandon(self) -> None:
        """Lets go of the files, whatever is in them."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _flush(self) -> None:
        if not self._numbers:
            return
        self._write(_TOKENS, b"".join(self._ids))
        self._write_bounds(_BOUNDS, np.array(self._lengths, np.int64) // np.dtype(np.int32).itemsize)
        for name, values in zip(self.columns.numbers, zip(*self._numbers, strict=True), strict=True):
            self._write(f"{name}.f64", np.array(values, np.float64).tobytes())  # None becomes NaN
        for name, texts in zip([*self._ends][1:], zip(*self._texts, strict=True), strict=True):
            encoded = [text.encode("utf-8") for text in texts]
            self._write(f"{name}.utf8", b"".join(encoded))
            self._write_bounds(name, np.array([*map(len, encoded)], np.int64))
        for block in (self._ids, self._lengths, self._numbers, self._texts):
            block.clear()

    def _write_bounds(self, name: str, lengths: Lengths) -> None:
        if len(lengths) == 0:
            return
        bounds = lengths.cumsum() + self._ends[name]
        self._ends[name] = int(bounds[-1])
        self._write(name if name == _BOUNDS else f"{name}.i64", bounds.tobytes())

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with disk_faults(path, len(content)):
            if name not in self._files:
                self._files[name] = path.open("xb")
            self._files[name].write(content)
