"""Ways in which a file may come to be something else than what was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def cut(share: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, share(path.stat().st_size))


def flip(place: Callable[[int], int]) -> Callable[[Path], None]:
    """Turns one bit over, and leaves size and times as they were, as a failing disk does."""

    def act(path: Path) -> None:
        status = path.stat()
        content = bytearray(path.read_bytes())
        content[place(len(content))] ^= 1 << (len(content) % 8)
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return act


def replace_by_link(path: Path) -> None:
    """The same bytes, reached through a link."""
    elsewhere = path.with_name(f"{path.name}.elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere.name)


TORN: dict[str, Callable[[Path], None]] = {
    "empty": cut(lambda size: 0),
    "half": cut(lambda size: size // 2),
    "one byte less": cut(lambda size: size - 1),
}
FLIPPED: dict[str, Callable[[Path], None]] = {
    "first bit": flip(lambda size: 0),
    "a bit in the middle": flip(lambda size: size // 2),
    "last bit": flip(lambda size: size - 1),
}
GONE: dict[str, Callable[[Path], None]] = {"gone": Path.unlink, "a link": replace_by_link}
EVERY = {**TORN, **FLIPPED, **GONE}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
