"""Durable, atomic, strictly valid files.

A file is written under another name in the same folder, forced to the disk, and renamed; then the folder is forced to
the disk too, because a rename that only the page cache knows is lost with the power. JSON has no NaN here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import EnvironmentFault, IntegrityError

CHUNK_BYTES = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAULTS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file is too large for the file system",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EEXIST: "a part of the path is not a directory",
    errno.EIO: "the device failed",
    errno.ESTALE: "the mount is gone",
    errno.ENOTCONN: "the mount is gone",
}


def free_bytes(path: Path) -> int:
    """Bytes that may still be written on the file system of a path, which need not exist yet."""
    for candidate in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(candidate).free
    return 0


def disk_fault(error: OSError, path: Path, needed: int | None = None) -> EnvironmentFault:
    """An operating system error as one that names the path, what was needed and what is free.

    Args:
        error: What the system said.
        path: The path that was to be written.
        needed: Bytes that were to be written, where that is known.
    """
    reason = _FAULTS.get(error.errno or 0, error.strerror or str(error))
    message = f"cannot write {path}: {reason}"
    if error.errno in _NO_SPACE:
        wanted = "an unknown number of" if needed is None else str(needed)
        return EnvironmentFault(
            f"{message}: needs {wanted} bytes, {free_bytes(path)} bytes are free", "free some space and run again"
        )
    return EnvironmentFault(message, "choose another folder with --out, or repair this one")


@contextlib.contextmanager
def disk_faults(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns every operating system error inside the block into an `EnvironmentFault` about `path`.

    Raises:
        EnvironmentFault: For any OSError.
    """
    try:
        yield
    except OSError as error:
        raise disk_fault(error, path, needed) from error


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: When the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """The sha256 of a value as canonical JSON: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: For NaN or infinity.
        TypeError: For what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def fsync_file(path: Path) -> None:
    """Forces a file's, or a folder's, content to the disk.

    Raises:
        OSError: When the system cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Forces every file and folder below a folder, and the folder itself, to the disk.

    Raises:
        EnvironmentFault: When the system cannot.
    """
    with disk_faults(directory):
        for folder, _, names in os.walk(directory, topdown=False):
            for name in names:
                fsync_file(Path(folder) / name)
            fsync_file(Path(folder))


def make_folder(path: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        EnvironmentFault: When it cannot be created.
    """
    with disk_faults(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replaces a file: after any crash it holds the old content or the new one, never a part.

    Args:
        path: The file; its folder is created where it is missing.
        data: Bytes, or text that becomes UTF-8.

    Raises:
        EnvironmentFault: When it cannot be written, naming the path and, on a full disk, needed and free bytes.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    make_folder(path.parent)
    with disk_faults(path, len(content)):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_file(path.parent)


def write_json(path: Path, value: object) -> None:
    """Writes strict JSON with sorted keys, atomically.

    Raises:
        EnvironmentFault: When the file cannot be written.
        ValueError: For NaN or infinity, which JSON does not have.
    """
    write_atomic(path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _reject_constant(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def read_json(path: Path) -> Any:
    """Reads strict JSON.

    Raises:
        IntegrityError: When the file is missing, torn, not UTF-8, or holds NaN, with its path.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_reject_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error


def write_json_lines(path: Path, rows: Iterable[Mapping[str, object]], *, sort_keys: bool = False) -> None:
    """Replaces a file by JSON objects, a line each.

    Raises:
        EnvironmentFault: When the file cannot be written.
        ValueError: For NaN or infinity.
    """
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys) for row in rows)
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def append_json_line(path: Path, value: Mapping[str, object]) -> None:
    """Appends one JSON object as a line; a torn last line, left by a crash, is cut off first.

    Raises:
        EnvironmentFault: When the file cannot be written.
        ValueError: For NaN or infinity.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    with disk_faults(path, len(line)), path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - CHUNK_BYTES))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; a missing file has none, and a torn last line is left out.

    Raises:
        IntegrityError: For a line that is no JSON object, with its number.
    """
    if not path.exists():
        return []
    # Lines end with a newline: what follows the last one was never finished.
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=_reject_constant)
        except ValueError as error:
            raise IntegrityError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise IntegrityError(f"{path}:{number} is not a JSON object")
        rows.append(row)
    return rows


def remove(path: Path) -> None:
    """Removes a file, link or folder; one that is gone already is fine.

    Raises:
        EnvironmentFault: When it cannot be removed.
    """
    with disk_faults(path), contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def set_aside(path: Path, suffix: str) -> Path:
    """Renames a file or folder to `NAME.suffix`, or `NAME.suffix-2` and so on where that is taken.

    Returns:
        The new path.

    Raises:
        EnvironmentFault: When it cannot be renamed.
    """
    count = 1
    while (target := path.with_name(f"{path.name}.{suffix}" + (f"-{count}" if count > 1 else ""))).exists():
        count += 1
    with disk_faults(path):
        os.rename(path, target)
        fsync_file(path.parent)
    return target
