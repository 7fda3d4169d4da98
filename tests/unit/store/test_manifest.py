from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prefopt.errors import IntegrityError, TrainingDiverged
from prefopt.store import manifest as manifests
from prefopt.store.hashing import HashCache
from prefopt.store.manifest import Manifest

KEY = "ab" * 32
FILES = {
    "adapter/weights": "w" * 100,
    "adapter/sub/config.json": "{}",
    "samples.jsonl": '{"a": 1}\n',
    "metrics.json": "{}",
}
ROOTS = ["adapter", "samples.jsonl", "metrics.json"]


def artefact(folder: Path) -> Manifest:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    header = Manifest(
        stage="sft",
        kind="sft",
        key=KEY,
        seed=3,
        inputs={"base": {"key": KEY, "sha256": KEY}},
        versions={"torch": "2.11.0"},
        metrics={"train/loss": 0.5},
        cost={"wall_seconds": 1.0},
        details={"notes": ["ä"]},
    )
    return manifests.commit(folder, header, ROOTS)


def test_what_was_committed_is_what_is_read(tmp_path: Path) -> None:
    written = artefact(tmp_path)
    assert manifests.read(tmp_path) == written == manifests.verify(tmp_path, full=True)
    assert [output.path for output in written.outputs] == sorted(FILES)
    assert written.created.endswith("+00:00")


def test_the_hash_follows_outputs_and_not_measurements_or_place(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in "abc")
    first = artefact(one)
    assert artefact(two).sha256 == first.sha256
    (two / "metrics.json").write_text('{"train/tokens_per_second": 3.0}')
    assert manifests.commit(two, first, ROOTS).sha256 == first.sha256
    artefact(three)
    (three / "adapter" / "weights").write_text("v" * 100)
    assert manifests.commit(three, first, ROOTS).sha256 != first.sha256


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["empty", "half", "one byte less", "flip", "gone", "link", "folder"])
def test_every_damage_to_every_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "artefact"
    artefact(folder)
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.unlink()
    if damage == "link":
        (tmp_path / "copy").write_bytes(content)
        path.symlink_to(tmp_path / "copy")
    elif damage == "folder":
        path.mkdir()
    elif damage != "gone":
        sizes = {"empty": 0, "half": len(content) // 2, "one byte less": len(content) - 1, "flip": len(content)}
        path.write_bytes(content[: sizes[damage]])
    for cache, full in ((None, True), (HashCache(None), False), (HashCache(None), True)):
        with pytest.raises(IntegrityError, match=str(path)):
            manifests.verify(folder, full=full, cache=cache)


def test_any_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    artefact(tmp_path)
    path = tmp_path / "manifest.json"
    original = path.read_bytes()
    for index in range(0, len(original), 5):
        content = bytearray(original)
        content[index] ^= 4
        path.write_bytes(content)
        if not original[index : index + 1].isspace():
            with pytest.raises(IntegrityError, match="manifest"):
                manifests.read(tmp_path)
    for size in (0, len(original) // 2, len(original) - 2):
        path.write_bytes(original[:size])
        with pytest.raises(IntegrityError, match=str(path)):
            manifests.verify(tmp_path, full=True)


def test_a_file_that_nobody_listed_is_refused_in_full(tmp_path: Path) -> None:
    artefact(tmp_path)
    (tmp_path / "adapter" / "adapter_model.bin").write_text("pickle")
    with pytest.raises(IntegrityError, match=r"adapter_model\.bin is not in the manifest"):
        manifests.verify(tmp_path, full=True)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "./a", "a\\..\\b", "a\0b", "a/"])
def test_paths_that_could_leave_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(IntegrityError, match="not a plain relative"):
        manifests.safe_path(path)
    artefact(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    del content["checksum"]
    content["outputs"][0]["path"] = path
    (tmp_path / "manifest.json").write_text(json.dumps(manifests.seal(content)))
    with pytest.raises(IntegrityError, match="not a plain relative"):
        manifests.read(tmp_path)


def test_links_are_not_committed(tmp_path: Path) -> None:
    folder = tmp_path / "artefact"
    (folder / "adapter").mkdir(parents=True)
    header = Manifest("s", "sft", KEY, 0)
    for target in (tmp_path, folder):
        link = folder / "adapter" / "link"
        link.symlink_to(target)
        with pytest.raises(IntegrityError, match="is a link"):
            manifests.commit(folder, header, ["adapter"])
        link.unlink()
    os.symlink(folder / "adapter", folder / "linked")
    with pytest.raises(IntegrityError, match="is a link"):
        manifests.commit(folder, header, ["linked"])
    with pytest.raises(IntegrityError, match="is missing"):
        manifests.commit(folder, header, ["nothing"])
    assert not (folder / "manifest.json").exists()


def test_numbers_that_are_not_finite_are_never_committed(tmp_path: Path) -> None:
    header = Manifest("s", "sft", KEY, 0, metrics={"train/loss": float("nan")})
    with pytest.raises(TrainingDiverged, match="train/loss of stage s is nan"):
        manifests.commit(tmp_path, header, [])
    assert not (tmp_path / "manifest.json").exists()
