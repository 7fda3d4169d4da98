"""A bit turned over anywhere in the ledger: found, or in a place that nothing reads; never another sample or score."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prefopt.errors import IntegrityError
from prefopt.records import Message
from prefopt.store.ledger import LEDGER_FILE, Ledger, StoredJudgement, StoredSample, key_of
from tests.faults.conftest import Count
from tests.faults.damage import flip
from tests.faults.injection import some

PROMPT = (Message("user", "what is the price?"),)
KEYS = [key_of("row", number) for number in range(40)]
FEW = 150
MANY = 5000
Content = tuple[dict[str, StoredSample], dict[str, float], dict[str, float | None]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    with Ledger(folder, "pairs") as ledger:
        ledger.add_samples("sft", {key: (PROMPT, StoredSample(f"it costs {key}", True, 7)) for key in KEYS})
        ledger.add_scores("gold", {key: (number / 7, 0.5) for number, key in enumerate(KEYS)})
        judged = {key: StoredJudgement(PROMPT, "a", "b", number / 40) for number, key in enumerate(KEYS)}
        ledger.add_judgements("gold", "which?", judged)
    return folder


def read(folder: Path) -> Content:
    with Ledger(folder, "pairs") as ledger:
        return ledger.samples(KEYS), ledger.scores(KEYS), ledger.judgements(KEYS)


def turned(written: Path, folder: Path, few: int | None) -> tuple[int, int]:
    """Turns bits over; how many, and how many of them were named."""
    whole = read(written)
    places = some((written / LEDGER_FILE).stat().st_size, few)
    named = 0
    for place in places:
        shutil.copytree(written, folder)
        flip(lambda size, place=place: place)(folder / LEDGER_FILE)
        try:
            found = read(folder)
        except IntegrityError as error:
            assert str(folder / LEDGER_FILE) in error.message and error.remedy, error
            named += 1
        else:
            for rows, expected in zip(found, whole, strict=True):
                # A row whose key has changed is not found, and so is made again.
                assert rows.items() <= expected.items(), f"byte {place}"
        shutil.rmtree(folder)
    return len(places), named


def test_t09_a_bit_of_the_ledger_is_found_or_read_by_nobody(written: Path, tmp_path: Path) -> None:
    tried, named = turned(written, tmp_path / "copy", FEW)
    assert tried == FEW and named > FEW / 3


@pytest.mark.sweep
def test_t09_every_byte_of_the_ledger(written: Path, tmp_path: Path, count: Count) -> None:
    tried, named = turned(written, tmp_path / "copy", MANY)
    assert tried == MANY and named > MANY / 3
    count("T9", "bits of the ledger", tried)


def test_t09_without_the_hash_of_a_row_a_changed_text_is_believed(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    path = copy / LEDGER_FILE
    path.write_bytes(path.read_bytes().replace(b"it costs", b"it coses"))
    with pytest.raises(IntegrityError, match="has changed since it was written"):
        read(copy)
    monkeypatch.setattr("prefopt.store.ledger.key_of", lambda *parts: Anything())
    assert read(copy)[0] != read(written)[0]


class Anything(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__
