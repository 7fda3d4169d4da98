"""Rows out of files, folders and the Hub: `read_rows` yields plain dicts and knows where each one stood.

Text is UTF-8, with or without a byte-order mark, with LF or CRLF. A damaged file is an error that names the line: rows
are never skipped here. Text that cannot make the way through UTF-8, JSON and SQLite unchanged (a lone surrogate, a NUL)
is refused the same way, because whatever is done to it silently is wrong for somebody.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from prefopt.data import hub
from prefopt.errors import DataError, EnvironmentFault
from prefopt.recipe.schema import DataSpec

Log = Callable[[str], None]
_Numbered = tuple[str, int, object]  # ("line" or "row", its number from 1, what was there)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as the source has it.

    Attributes:
        number: Line number in JSON lines, row number elsewhere; from 1, and from 1 again in each file of a folder.
        row: Column names and values.
        where: `file, line 3`: how messages name the row.
    """

    number: int
    row: dict[str, Any]
    where: str


def read_rows(spec: DataSpec, log: Log) -> Iterator[SourceRow]:
    """Yields the rows of a data set in the order of the source, at most `max_samples`.

    Args:
        spec: The data set; `toy` is not a source of rows.
        log: Takes one line for each file or repository that is opened.

    Raises:
        DataError: If the files are missing, torn, not UTF-8 or not of their kind; with file and line or row.
        EnvironmentFault: If the Hub or the disk cannot be read.
    """
    for row in islice(_rows(spec, log), spec.max_samples):
        if not _is_sound(row.row):
            _check_text(row.row, row.where, "")
        yield row


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    """What identifies the content of a data set, for the keys of stages.

    Returns:
        `{"kind": "files", "files": [absolute paths whose bytes are to be hashed]}`,
        `{"kind": "hub", "path", "name", "data_dir", "revision", "split"}`, or
        `{"kind": "toy", "version", "name", "seed", "noise"}` (a seed of None: the recipe's).

    Raises:
        DataError: If a local path does not exist or holds no data.
    """
    if spec.path == "toy":
        from prefopt.data.toy import world

        return {"kind": "toy", "version": world.VERSION, "name": spec.name, "seed": spec.seed, "noise": spec.noise}
    root = _local_path(spec)
    if root is None:
        where = {key: getattr(spec, key) for key in ("path", "name", "data_dir", "revision", "split")}
        return {"kind": "hub", **where}
    if _is_saved_by_datasets(root):
        files = sorted(path for path in root.rglob("*") if path.is_file())
    else:
        files = _data_files(root, spec.split)
    return {"kind": "files", "files": [str(path.resolve()) for path in files]}


def _rows(spec: DataSpec, log: Log) -> Iterator[SourceRow]:
    root = _local_path(spec)
    if root is None:
        log(f"reading {spec.path} from the Hub")
        yield from _named(spec.path, (("row", number, row) for number, row in enumerate(hub.rows(spec), 1)))
    elif _is_saved_by_datasets(root):
        log(f"reading {root}")
        yield from _named(str(root), (("row", number, row) for number, row in enumerate(hub.saved_rows(root, spec), 1)))
    else:
        for path in _data_files(root, spec.split):
            log(f"reading {path}")
            yield from _read_file(path)


def _named(source: str, rows: Iterator[_Numbered]) -> Iterator[SourceRow]:
    for unit, number, row in rows:
        where = f"{source}, {unit} {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with columns, found {_kind(row)}")
        yield SourceRow(number, row, where)


def _kind(value: object) -> str:
    return {"NoneType": "null", "list": "a list", "str": "text"}.get(type(value).__name__, type(value).__name__)


def _is_sound(value: object) -> bool:
    """Whether `_check_text` has nothing to say, for a fraction of its time."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            if "\0" in part or not (part.isascii() or not _SURROGATE.search(part)):
                return False
        elif isinstance(part, dict):
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return True


_SURROGATE = re.compile("[\ud800-\udfff]")


def _check_text(value: object, where: str, column: str) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise DataError(f"{where}: column '{column}' contains a NUL character", "remove the character or the row")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: column '{column}' contains half of a surrogate pair, which is no character",
                "write the file again as UTF-8, or remove the row",
            ) from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(item, where, f"{column}.{key}" if column else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_text(item, where, f"{column}[{index}]")


# ---- which files -----------------------------------------------------------------------------------------------------

_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}


def _data_suffix(path: Path) -> str:
    """`.jsonl` for `pairs.jsonl.gz`; empty for what is no data file."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    return suffix if suffix in _READERS and name not in _NOT_DATA and not name.startswith(".") else ""


def _local_path(spec: DataSpec) -> Path | None:
    """The file or folder that a spec names, or None for a Hub id."""
    path = Path(spec.path).expanduser()
    if path.is_dir() and spec.data_dir is not None:
        path = path / spec.data_dir
        if not path.exists():
            raise DataError(f"data_dir '{spec.data_dir}' does not exist in {spec.path}")
    if path.exists():
        return path
    looks_local = path.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") > 1
    if looks_local or _data_suffix(path):
        raise DataError(f"{spec.path}: no such file or folder", "give a path, a Hub id such as owner/name, or 'toy'")
    return None


def _is_saved_by_datasets(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _data_files(path: Path, split: str) -> list[Path]:
    if "[" in split:
        raise DataError(f"split '{split}': slices work on the Hub only", "use max_samples for local data")
    if path.is_file():
        if not _data_suffix(path):
            raise DataError(f"{path}: unknown kind of file", f"known: {', '.join(_READERS)}, each also with .gz")
        return [path]
    files = sorted(item for item in path.iterdir() if item.is_file() and _data_suffix(item))
    if not files:
        folders = sorted(item.name for item in path.iterdir() if item.is_dir())
        hint = f"set data_dir to one of: {', '.join(folders[:8])}" if folders else f"known: {', '.join(_READERS)}"
        raise DataError(f"{path}: no data files in this folder", hint)
    wanted = [item for item in files if _names_split(item, _SPLIT_WORDS.get(split, (split,)))]
    others = [name for name, words in _SPLIT_WORDS.items() if any(_names_split(item, words) for item in files)]
    if not wanted and others:
        raise DataError(f"{path}: no file of split '{split}'", f"the folder has: {', '.join(others)}; set split")
    return wanted or files


def _names_split(path: Path, words: tuple[str, ...]) -> bool:
    stem = path.name.lower().removesuffix(".gz")
    return any(re.search(rf"(?:^|[^a-z0-9]){re.escape(word.lower())}(?:[^a-z0-9]|\d*-of-|$)", stem) for word in words)


# ---- readers: bytes to numbered rows ---------------------------------------------------------------------------------


def _read_file(path: Path) -> Iterator[SourceRow]:
    with _file_errors(path), _open(path) as stream:
        yield from _named(str(path), _READERS[_data_suffix(path)](stream, path))


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error})", "copy or download it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})", "convert it, e.g. with iconv -t UTF-8") from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(text: str | bytes, where: str) -> Any:
    """Parses JSON; `where` names the file and, for JSON lines, the line."""
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        at = f" line {error.lineno}" if error.lineno > 1 else ""
        raise DataError(f"{where}:{at} not JSON ({error.msg} at column {error.colno})", "is the file torn?") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON that can be read ({error})") from error


def _json_lines(stream: BinaryIO, path: Path) -> Iterator[_Numbered]:
    # Bytes are split at \n alone: str.splitlines would also cut at U+2028 inside a string.
    for number, line in enumerate(stream, 1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content.strip():
            yield "line", number, _parse(content, f"{path}, line {number}")


def _json(stream: BinaryIO, path: Path) -> Iterator[_Numbered]:
    content = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        whole = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            # JSON lines under the name .json, as many data sets have it.
            yield from _json_lines(io.BytesIO(content), path)
            return
        whole = _parse(content, str(path))  # says where
    if isinstance(whole, dict):
        whole = whole["data"] if isinstance(whole.get("data"), list) else [whole]
    if not isinstance(whole, list):
        raise DataError(f"{path}: expected a list of objects or {{'data': [...]}}, found {_kind(whole)}")
    for number, row in enumerate(whole, 1):
        yield "row", number, row


def _csv(stream: BinaryIO, path: Path) -> Iterator[_Numbered]:
    # The limit is the module's, not the reader's; its default of 128 KiB refuses long conversations.
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if _data_suffix(path) == ".tsv" else ","
    number = 0
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            names = reader.fieldnames or []
            if len(set(names)) != len(names):
                raise DataError(f"{path}: the header names a column twice: {', '.join(names)}")
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    found = len(names) + len(row.get(None) or ()) - sum(value is None for value in row.values())
                    raise DataError(f"{path}, row {number}: {found} fields, the header has {len(names)}")
                yield "row", number, {name: _csv_cell(value) for name, value in row.items()}
        except csv.Error as error:
            raise DataError(f"{path}, row {number + 1}: not CSV ({error})", "is the file torn?") from error


def _csv_cell(value: str) -> object:
    """Message lists stand in CSV as JSON; everything else is text."""
    if value.startswith("[{") and value.endswith("}]"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parquet(stream: BinaryIO, path: Path) -> Iterator[_Numbered]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    with _arrow_errors(path):
        batches = parquet.ParquetFile(_seekable(stream)).iter_batches(batch_size=1024)
        yield from _batch_rows(batches)


def _arrow(stream: BinaryIO, path: Path) -> Iterator[_Numbered]:
    from pyarrow import ArrowInvalid, ipc

    source = _seekable(stream)
    with _arrow_errors(path):
        try:
            file = ipc.open_file(source)
        except ArrowInvalid:  # the streaming layout, which `datasets` writes
            source.seek(0)
            yield from _batch_rows(ipc.open_stream(source))
        else:
            yield from _batch_rows(file.get_batch(index) for index in range(file.num_record_batches))


def _seekable(stream: BinaryIO) -> BinaryIO:
    return io.BytesIO(stream.read()) if isinstance(stream, gzip.GzipFile) else stream


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        raise DataError(f"{path}: damaged or of another kind ({error})", "write or download it again") from error
    except MemoryError as error:  # a damaged length asks for gigabytes
        raise DataError(
            f"{path}: damaged, or its parts are larger than the memory", "write it again, in smaller row groups"
        ) from error


def _batch_rows(batches: Iterator[Any]) -> Iterator[_Numbered]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield "row", number, row


_READERS: dict[str, Callable[[BinaryIO, Path], Iterator[_Numbered]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
