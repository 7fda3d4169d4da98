"""The manifest of an artefact: what it was made from, what it is, and how to know that it is whole.

It is written last, atomically, after every output was hashed and forced to the disk: a folder with a manifest that
verifies is finished, a folder without one never was. The manifest carries a checksum of itself.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from prefopt.errors import IntegrityError, TrainingDiverged
from prefopt.store.files import disk_faults, fsync_file, read_json, sha256_file, sha256_json, write_json
from prefopt.store.hashing import HashCache

MANIFEST = "manifest.json"
FORMAT = 1
# Measured, so different in every run (times, tokens per second), and no stage reads them: they are verified as all
# outputs are, but do not enter the hash that keys of later stages hold.
MEASUREMENTS = ("metrics.json", "metrics.jsonl")


@dataclass(frozen=True, slots=True)
class Output:
    """One file of an artefact; `path` is relative to its folder, with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artefact is.

    Attributes:
        stage: Name of the stage that made it.
        kind: The stage's kind.
        key: The stage's key, 64 hexadecimal digits.
        seed: The seed it ran with.
        inputs: By stage name, the `key` and `sha256` of the artefacts it read.
        versions: Versions of the libraries that made it.
        metrics: Final numbers, under the names of `prefopt.tracking.metrics`.
        cost: Wall seconds, tokens, peak bytes and the like.
        details: What else is worth keeping: the data report, notes, warnings.
        created: When it was committed, UTC, ISO 8601; empty before.
        roots: The files and folders that make up the artefact; nothing else may be in those folders.
        outputs: Every file of them.
    """

    stage: str
    kind: str
    key: str
    seed: int
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    roots: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()

    @property
    def sha256(self) -> str:
        """The hash of the outputs that later stages may read: what their keys hold."""
        return sha256_json(sorted([o.path, o.sha256] for o in self.outputs if o.path not in MEASUREMENTS))


def safe_path(text: str) -> str:
    """A path from a manifest, if it is relative, plain and stays inside its folder.

    Raises:
        IntegrityError: Otherwise.
    """
    pure = PurePosixPath(text)
    plain = bool(text) and "\0" not in text and "\\" not in text and str(pure) == text
    if not plain or pure.is_absolute() or ".." in pure.parts or text == ".":
        raise IntegrityError(f"the path {text!r} in a manifest is not a plain relative one")
    return text


def _regular(directory: Path, relative: str) -> os.stat_result:
    """The status of a file of an artefact that is reached without any link."""
    path = directory
    for part in PurePosixPath(safe_path(relative)).parts:
        path = path / part
        try:
            status = path.lstat()
        except OSError as error:
            raise IntegrityError(f"{path} is missing: {error.strerror}") from error
        if stat.S_ISLNK(status.st_mode):
            raise IntegrityError(f"{path} is a link; an artefact holds plain files only")
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"{path} is not a file")
    return status


def _files_below(directory: Path, root: str) -> Iterator[str]:
    path = directory / safe_path(root)
    if path.is_symlink() or not path.is_dir():
        yield root
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted([*names, *links]):
            yield (Path(folder) / name).relative_to(directory).as_posix()


def list_outputs(directory: Path, roots: Sequence[str]) -> tuple[Output, ...]:
    """Hashes every file of an artefact and forces it, and the folders it is in, to the disk.

    Args:
        directory: The artefact's folder.
        roots: Files and folders in it, relative.

    Raises:
        IntegrityError: For a path that leaves the folder, a link, or something missing.
        EnvironmentFault: When the disk fails.
    """
    outputs = []
    folders = {directory}
    for name in sorted({name for root in roots for name in _files_below(directory, root)}):
        status = _regular(directory, name)
        path = directory / name
        with disk_faults(path, status.st_size):
            fsync_file(path)
            outputs.append(Output(name, status.st_size, sha256_file(path)))
        folders.update(directory / parent for parent in PurePosixPath(name).parents)
    for folder in sorted(folders, reverse=True):
        with disk_faults(folder):
            fsync_file(folder)
    return tuple(outputs)


def commit(directory: Path, manifest: Manifest, roots: Sequence[str]) -> Manifest:
    """Makes an artefact final: its outputs are hashed and on the disk, then the manifest is written.

    Args:
        directory: The artefact's folder.
        manifest: Everything but `created`, `roots` and `outputs`.
        roots: The files and folders in `directory` that make up the artefact.

    Returns:
        The manifest as written.

    Raises:
        TrainingDiverged: For a metric or cost that is not finite.
        IntegrityError: For an output that is missing, a link, or outside the folder.
        EnvironmentFault: When the disk fails.
    """
    for name, value in (manifest.metrics | manifest.cost).items():
        if not math.isfinite(value):
            raise TrainingDiverged(f"{name} of stage {manifest.stage} is {value}; the stage is not committed")
    complete = replace(
        manifest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        roots=tuple(sorted(roots)),
        outputs=list_outputs(directory, roots),
    )
    write_json(directory / MANIFEST, seal(asdict(complete)))
    return complete


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's content with its format and a checksum of itself."""
    body = {**content, "format": FORMAT}
    return {**body, "checksum": sha256_json(body)}


def unseal(path: Path) -> dict[str, Any]:
    """Reads what `seal` made.

    Raises:
        IntegrityError: When the file is torn, was changed, or has another format.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is not a manifest")
    checksum = value.pop("checksum", None)
    if checksum != sha256_json(value):
        raise IntegrityError(f"{path} differs from its own checksum")
    if value.pop("format", None) != FORMAT:
        raise IntegrityError(f"{path} was written by another version of prefopt")
    return value


def read(directory: Path) -> Manifest:
    """The manifest of an artefact; its files are not looked at.

    Raises:
        IntegrityError: When it is missing, torn or changed.
    """
    path = directory / MANIFEST
    value = unseal(path)
    try:
        outputs = tuple(Output(**output) for output in value.pop("outputs"))
        manifest = Manifest(**{**value, "roots": tuple(value["roots"])}, outputs=outputs)
    except (TypeError, KeyError) as error:
        raise IntegrityError(f"{path} is not a manifest: {error}") from error
    for name in (*manifest.roots, *(output.path for output in outputs)):
        safe_path(name)
    return manifest


def verify(directory: Path, full: bool, cache: HashCache | None = None) -> Manifest:
    """Checks that an artefact is what its manifest says.

    Args:
        directory: The artefact's folder.
        full: Read and hash every byte, and refuse files that the manifest does not list. Otherwise a hash in the
            cache is believed as long as size, modification time and inode of the file are unchanged.
        cache: Remembered hashes; none: sizes are compared where `full` is not asked for.

    Returns:
        The manifest.

    Raises:
        IntegrityError: Naming the file that is missing, changed, a link, or not listed.
    """
    manifest = read(directory)
    for output in manifest.outputs:
        check_output(directory, output, full, cache)
    if full:
        listed = {output.path for output in manifest.outputs}
        for root in manifest.roots:
            for name in _files_below(directory, root):
                if name not in listed:
                    raise IntegrityError(f"{directory / name} is not in the manifest beside it")
    return manifest


def check_output(directory: Path, output: Output, full: bool, cache: HashCache | None = None) -> None:
    """Checks one file against its manifest.

    Raises:
        IntegrityError: When it is missing, changed or a link.
    """
    status = _regular(directory, output.path)
    path = directory / output.path
    if status.st_size != output.bytes:
        raise IntegrityError(f"{path} has {status.st_size} bytes, its manifest says {output.bytes}")
    if not full and cache is None:
        return
    try:
        if cache is None:
            digest = sha256_file(path)
        else:
            digest = cache.refresh(path) if full else cache.file(path)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
    if digest != output.sha256:
        raise IntegrityError(f"{path} has changed: its sha256 is not the one in its manifest")
