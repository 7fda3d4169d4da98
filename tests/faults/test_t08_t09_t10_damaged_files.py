"""Every file of every checkpoint and artefact is truncated, turned over in one bit, removed: found, named, not used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prefopt.errors import IntegrityError
from prefopt.store import checkpoints
from prefopt.store import manifest as manifests
from prefopt.store.checkpoints import newest_verified
from prefopt.store.manifest import MANIFEST
from tests.faults.conftest import Count
from tests.faults.damage import EVERY, FLIPPED, files
from tests.faults.injection import forked
from tests.faults.runs import STAGES, Experiment
from tests.faults.trained import KINDS, SAVED, train
from tests.unit.trainers.four import METHODS


def two_checkpoints(kind: str, folder: Path) -> Path:
    ended = forked(lambda: train(kind, folder, save_total_limit=2))
    assert not ended.error, ended.error
    return folder / "checkpoints"


def still_whole(damage: str, path: Path) -> bool:
    """The last byte of a manifest is a newline, without which it says the same."""
    return path.name == MANIFEST and damage == "one byte less"


def damage_checkpoints(kind: str, folder: Path) -> int:
    saved = two_checkpoints(kind, folder / "run")
    older, newer = SAVED[kind]
    count = 0
    for path in files(saved / f"checkpoint-{newer}"):
        for name, act in EVERY.items():
            if still_whole(name, path):
                continue
            copy = folder / "copy"
            shutil.copytree(saved, copy)
            damaged = copy / path.relative_to(saved)
            act(damaged)
            said: list[str] = []
            found = newest_verified(copy, said.append)
            assert found == copy / f"checkpoint-{older}", f"{damaged} {name}: {said}"
            (line,) = said
            assert str(damaged) in line and f"checkpoint-{newer} is not used" in line, line
            assert (copy / f"checkpoint-{newer}.torn").is_dir()
            shutil.rmtree(copy)
            count += 1
    return count


@pytest.mark.slow
def test_t08_t09_t10_a_damaged_checkpoint_of_ppo_is_never_believed(tmp_path: Path) -> None:
    """That of ppo has all there is: adapters, a head, states of its own, optimiser, scheduler, random numbers."""
    assert damage_checkpoints("ppo", tmp_path) > 50


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
def test_t08_t09_t10_a_damaged_checkpoint_is_never_believed(kind: str, tmp_path: Path, count: Count) -> None:
    found = damage_checkpoints(kind, tmp_path)
    assert found > 40
    count("T8-T10", "damaged files of checkpoints", found)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_t10_without_a_file_of_its_state_a_run_ends_with_the_same_bits(kind: str, name: str, tmp_path: Path) -> None:
    """Not by an inexact resume, but from the checkpoint before."""
    saved = two_checkpoints(kind, tmp_path / "run")
    whole = train_again(kind, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    (saved / f"checkpoint-{SAVED[kind][1]}" / name).unlink()
    again = train_again(kind, tmp_path / "run")
    assert again["from"] == SAVED[kind][0] and whole["from"] == SAVED[kind][1]
    assert again["sha256"] == whole["sha256"]


def train_again(kind: str, folder: Path) -> dict:
    ended = forked(lambda: train(kind, folder, save_total_limit=2))
    assert not ended.error, ended.error
    return ended.value


# -- artefacts ---------------------------------------------------------------------------------------------------------


def damage_artefact(folder: Path, copy: Path) -> int:
    listed = {output.path for output in manifests.read(folder).outputs} | {MANIFEST}
    count = 0
    for path in files(folder):
        if path.relative_to(folder).as_posix() not in listed:
            continue
        for name, act in EVERY.items():
            if still_whole(name, path) or (path.name == MANIFEST and name == "a link"):  # it says the same
                continue
            shutil.copytree(folder, copy)
            damaged = copy / path.relative_to(folder)
            act(damaged)
            with pytest.raises(IntegrityError) as error:
                manifests.verify(copy, full=True)
            assert str(damaged) in error.value.message, f"{name}: {error.value.message}"
            shutil.rmtree(copy)
            count += 1
    return count


@pytest.mark.slow
def test_t08_t09_a_damaged_artefact_is_named(whole: Experiment, tmp_path: Path) -> None:
    assert damage_artefact(whole.folder("sft"), tmp_path / "copy") > 60


@pytest.mark.sweep
def test_t08_t09_every_damaged_artefact_is_named(whole: Experiment, tmp_path: Path, count: Count) -> None:
    found = sum(damage_artefact(whole.folder(stage), tmp_path / "copy") for stage in STAGES)
    assert found > 300
    count("T8-T9", "damaged files of artefacts", found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["half", "a bit in the middle", "gone"])
def test_t08_t09_a_run_never_trains_on_a_damaged_artefact(
    whole: Experiment, tmp_path: Path, name: str, damage: str
) -> None:
    experiment = whole.copy(tmp_path, STAGES[2:])
    expected = experiment.results(("sft",))
    path = experiment.folder("sft") / name
    EVERY[damage](path)
    # Size and time of a flipped bit are those that were remembered: it is found where the file is read.
    ended = experiment.run(only=("sft", "pairs"))
    assert not ended.error, ended.error
    if ended.value["exit_code"]:
        code, said = ended.value["errors"]["pairs"]
        assert code == 5 and str(path) in said and "--from sft" in said, said
        ended = experiment.run(start_from="sft", only=("sft", "pairs"))
    else:
        assert any("damaged" in said for said in ended.value["said"]), ended.value["said"]
    assert ended.value["exit_code"] == 0, ended.value
    assert experiment.results(("sft",)) == expected


# -- what the checks are worth -----------------------------------------------------------------------------------------


def test_t09_without_hashes_a_flipped_bit_is_not_found(
    whole: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole.folder("sft"), copy)
    FLIPPED["a bit in the middle"](copy / "adapter" / "adapter_model.safetensors")
    assert manifests.verify(copy, full=False).stage == "sft"  # by size alone
    with pytest.raises(IntegrityError):
        manifests.verify(copy, full=True)


def test_t08_without_verification_a_torn_checkpoint_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda directory: None)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "weights").write_text("")
    assert newest_verified(tmp_path, lambda text: None) == tmp_path / "checkpoint-3"
