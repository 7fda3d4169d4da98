"""Checkpoints that are whole or not there.

A checkpoint is written to `tmp-…`, hashed, forced to the disk, given a manifest, and renamed to `checkpoint-STEP`; only
after that are older ones removed. Order is by step number: clocks jump, and copies share a modification time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import IntegrityError
from prefopt.store.files import disk_faults, fsync_file, make_folder, remove, set_aside, write_json
from prefopt.store.manifest import MANIFEST, Output, check_output, list_outputs, safe_path, seal, unseal

TEMPORARY = "tmp-"
_REPLACED = ".replaced"
_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's manifest says.

    Attributes:
        step: Optimiser steps done.
        extra: What the trainer wanted kept beside the files.
        outputs: Every file.
    """

    step: int
    extra: dict[str, Any]
    outputs: tuple[Output, ...]


def commit_checkpoint(tmp_dir: Path, final_dir: Path, step: int, extra: dict[str, Any]) -> None:
    """Makes a checkpoint final.

    Args:
        tmp_dir: The folder it was written to, on the file system of `final_dir`.
        final_dir: `checkpoint-STEP`. One that exists already, of an earlier attempt, is replaced.
        step: Optimiser steps done.
        extra: JSON to keep in the manifest.

    Raises:
        IntegrityError: For a link inside the checkpoint.
        EnvironmentFault: When the disk fails; `final_dir` is then what it was.
        ValueError: When the name of `final_dir` does not hold the step.
    """
    if final_dir.name != f"checkpoint-{step}":
        raise ValueError(f"the checkpoint of step {step} cannot be called {final_dir.name}")
    names = sorted(entry.name for entry in tmp_dir.iterdir() if entry.name != MANIFEST)
    outputs = list_outputs(tmp_dir, names)
    content = {"step": step, "extra": extra, "outputs": [asdict(output) for output in outputs]}
    write_json(tmp_dir / MANIFEST, seal(content))
    make_folder(final_dir.parent)
    replaced = final_dir.with_name(final_dir.name + _REPLACED)
    with disk_faults(final_dir, sum(output.bytes for output in outputs)):
        if final_dir.exists():
            remove(replaced)
            os.rename(final_dir, replaced)
        os.rename(tmp_dir, final_dir)
        fsync_file(final_dir.parent)
    remove(replaced)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Reads and fully verifies a checkpoint.

    Raises:
        IntegrityError: Naming the file that is missing, changed, or not listed.
    """
    path = directory / MANIFEST
    value = unseal(path)
    try:
        outputs = tuple(Output(**output) for output in value["outputs"])
        checkpoint = Checkpoint(int(value["step"]), dict(value["extra"]), outputs)
    except (TypeError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path} is not a checkpoint's manifest: {error}") from error
    if directory.name != f"checkpoint-{checkpoint.step}":
        raise IntegrityError(f"{directory} holds the checkpoint of step {checkpoint.step}")
    for output in outputs:
        check_output(directory, output, full=True)
    listed = {MANIFEST, *(safe_path(output.path) for output in outputs)}
    for folder, _, names in os.walk(directory):
        for name in names:
            relative = (Path(folder) / name).relative_to(directory).as_posix()
            if relative not in listed:
                raise IntegrityError(f"{directory / relative} is not in the checkpoint's manifest")
    return checkpoint


def checkpoints(directory: Path) -> list[Path]:
    """The committed checkpoints of a folder, unverified, lowest step first."""
    found = []
    for entry in directory.iterdir() if directory.is_dir() else ():
        if (match := _NAME.match(entry.name)) and entry.is_dir():
            found.append((int(match.group(1)), entry))
    return [entry for _, entry in sorted(found)]


def newest_verified(directory: Path, log: Callable[[str], None]) -> Path | None:
    """The checkpoint with the highest step among those that verify fully.

    Torn ones on the way are renamed to `NAME.torn`, so that they are neither believed nor lost, and what an interrupted
    save left behind is removed.

    Args:
        directory: The folder of checkpoints; it need not exist.
        log: Is told about everything that was skipped.

    Raises:
        EnvironmentFault: When a torn checkpoint cannot be renamed.
    """
    if not directory.is_dir():
        return None
    _clean(directory, log)
    for candidate in reversed(checkpoints(directory)):
        try:
            read_checkpoint(candidate)
        except IntegrityError as error:
            aside = set_aside(candidate, "torn")
            log(f"{candidate.name} is not used: {error.message}; it is kept as {aside.name}")
        else:
            return candidate
    return None


def _clean(directory: Path, log: Callable[[str], None]) -> None:
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith(TEMPORARY):
            remove(entry)
        elif entry.name.endswith(_REPLACED):
            original = entry.with_name(entry.name.removesuffix(_REPLACED))
            if original.exists():
                remove(entry)
            else:
                # The process ended between the two renames of a replacement: the old one is still good.
                log(f"{original.name} is restored: its replacement was never finished")
                with disk_faults(original):
                    os.rename(entry, original)


def rotate(directory: Path, keep: int, protect: set[Path]) -> None:
    """Removes the checkpoints with the lowest steps; to be called after a commit.

    Args:
        directory: The folder of checkpoints.
        keep: How many of the newest stay; at least 1.
        protect: Checkpoints that stay in any case.

    Raises:
        EnvironmentFault: When one cannot be removed.
    """
    kept = {path.name for path in protect}
    for candidate in checkpoints(directory)[: -max(1, keep)]:
        if candidate.name not in kept:
            # Under its new name no reader takes it for a checkpoint while its files go one by one.
            doomed = candidate.with_name(f"{TEMPORARY}removed-{candidate.name}")
            remove(doomed)
            with disk_faults(candidate):
                os.rename(candidate, doomed)
            remove(doomed)
