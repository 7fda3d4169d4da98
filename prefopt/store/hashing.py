"""Hashes that are trusted as long as a file's size, modification time and inode are what they were."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from prefopt.errors import EnvironmentFault, IntegrityError
from prefopt.store.files import read_json, sha256_file, sha256_json, write_json

# A file changed within the clock tick of its own modification time keeps that time. Hashes of files this young are
# not remembered, nor of files from the future, where a clock that jumped back makes age unknowable.
RACY_SECONDS = 0.1
PRUNE_ABOVE = 10_000


class HashCache:
    """Sha256 of files and folders, remembered between runs in one JSON file.

    Args:
        path: Where hashes are kept. None keeps them for this process only.

    A torn or missing cache is an empty one: it only saves time.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, list[int | str]] = {}
        self._changed = False
        if path is not None:
            # What cannot be read is hashed again; nothing is lost but time.
            with contextlib.suppress(IntegrityError):
                self._entries = _valid_entries(read_json(path))

    def file(self, path: Path) -> str:
        """The sha256 of a file, from memory where its size, modification time and inode are unchanged.

        Raises:
            OSError: When it cannot be read.
        """
        name = str(path.absolute())
        stamp = _stamp(path.stat())
        known = self._entries.get(name)
        if known is not None and known[:3] == stamp:
            return str(known[3])
        return self.refresh(path)

    def refresh(self, path: Path) -> str:
        """The sha256 of a file, read now whatever is remembered.

        Raises:
            OSError: When it cannot be read.
        """
        name = str(path.absolute())
        stamp = _stamp(path.stat())
        digest = sha256_file(path)
        after = path.stat()
        self._entries.pop(name, None)
        if _stamp(after) == stamp and time.time() - after.st_mtime > RACY_SECONDS:
            self._entries[name] = [*stamp, digest]
        self._changed = True
        return digest

    def tree(self, directory: Path) -> str:
        """The sha256 over the sorted relative paths and hashes of all files below a folder.

        Links to files are followed, as the cache of the Hub is made of them.

        Raises:
            OSError: When a file cannot be read.
        """
        files = []
        for folder, folders, names in os.walk(directory):
            folders.sort()
            for name in names:
                path = Path(folder) / name
                files.append([path.relative_to(directory).as_posix(), self.file(path)])
        return sha256_json(sorted(files))

    def save(self) -> None:
        """Writes what was learned; a cache that cannot be written is done without."""
        if self._path is None or not self._changed:
            return
        with contextlib.suppress(IntegrityError):
            # Two runs may share the cache: what the other learned meanwhile is kept.
            self._entries = {**_valid_entries(read_json(self._path)), **self._entries}
        if len(self._entries) > PRUNE_ABOVE:
            self._entries = {name: entry for name, entry in self._entries.items() if os.path.exists(name)}
        with contextlib.suppress(EnvironmentFault):
            write_json(self._path, self._entries)
            self._changed = False


def _stamp(status: os.stat_result) -> list[int | str]:
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _valid_entries(value: object) -> dict[str, list[int | str]]:
    if not isinstance(value, dict):
        return {}
    return {
        name: entry
        for name, entry in value.items()
        if isinstance(entry, list) and len(entry) == 4 and isinstance(entry[3], str) and len(entry[3]) == 64
    }
