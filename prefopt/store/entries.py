"""Folders of a cache, known by the hash of everything that decides their content, each made once.

An entry is written beside, forced to the disk, and renamed. It is believed when every file has the size and the sha256
that were noted when it was made; one that is torn or damaged is made again and is never an error. Processes that want
the same entry at once wait for the one that makes it, however that one ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from prefopt.errors import IntegrityError
from prefopt.store.files import (
    disk_faults,
    fsync_file,
    fsync_tree,
    make_folder,
    read_json,
    remove,
    sha256_file,
    write_json,
)

ENTRY = "entry.json"


def entry(root: Path, key: str, make: Callable[[Path], None], log: Callable[[str], None]) -> Path:
    """The folder of an entry, made where it is not there or not what was written.

    Args:
        root: Folder of the cache.
        key: Hash of everything that decides the content; a name of a folder.
        make: Writes the content into an empty folder.
        log: Takes a line where an entry is damaged, or somebody else is making it.

    Raises:
        EnvironmentFault: When the disk is full or cannot be written to.
    """
    folder = root / key
    if verifies(folder):
        return folder
    make_folder(root)
    lock = FileLock(root / f".{key}.lock")
    with disk_faults(root):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log(f"waiting for another process, which makes {folder}")
            lock.acquire()
    try:
        if verifies(folder):  # made meanwhile
            return folder
        if folder.exists():
            log(f"{folder} is damaged and made again")
            # By another name first: what is being removed must not look like an entry.
            with disk_faults(folder):
                folder.rename(_beside(folder))
        for left in root.glob(f".{key}.*.tmp"):  # nobody else is making this entry
            remove(left)
        return _made(folder, make)
    finally:
        lock.release()


def verifies(folder: Path) -> bool:
    """Whether a folder holds what was written into it, to the byte."""
    try:
        files = read_json(folder / ENTRY)["files"]
        there = {path.name for path in folder.iterdir()} - {ENTRY}
        return there == set(files) and all(
            (folder / name).stat().st_size == size and sha256_file(folder / name) == digest
            for name, (size, digest) in files.items()
        )
    except (IntegrityError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return False


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    beside = _beside(folder)
    make_folder(beside)
    try:
        make(beside)
        with disk_faults(beside):
            files = {path.name: [path.stat().st_size, sha256_file(path)] for path in sorted(beside.iterdir())}
        write_json(beside / ENTRY, {"files": files})
        fsync_tree(beside)
        with disk_faults(folder):
            beside.rename(folder)
            fsync_file(folder.parent)
    finally:
        remove(beside)
    return folder


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
