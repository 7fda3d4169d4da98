from pathlib import Path

import pytest

from prefopt.pipeline.remembered import Remembered


class Counting:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, list[float]]:
        self.times += 1
        return {"kl": [0.5, self.times / 3]}


def test_a_document_is_made_once_for_an_identity(tmp_path: Path) -> None:
    make, said = Counting(), []
    known = Remembered(tmp_path, ["model", 1], said.append)
    first = known.get("answers of sft", ["policy", 2], make)
    assert Remembered(tmp_path, ["model", 1], said.append).get("answers of sft", ["policy", 2], make) == first
    assert make.times == 1 and said == ["answers of sft known from an earlier evaluation"]


@pytest.mark.parametrize(
    ("common", "what", "identity"),
    [(["model", 2], "answers", [1]), (["model", 1], "scores", [1]), (["model", 1], "answers", [2])],
)
def test_whatever_it_depends_on_makes_it_anew(
    tmp_path: Path, common: list[object], what: str, identity: list[int]
) -> None:
    make = Counting()
    Remembered(tmp_path, ["model", 1], print).get("answers", [1], make)
    Remembered(tmp_path, common, print).get(what, identity, make)
    assert make.times == 2


@pytest.mark.parametrize("damage", [b"{", b'{"sha256": "0", "document": 1}', b"[]", b"\xff"])
def test_a_damaged_document_is_not_believed(tmp_path: Path, damage: bytes) -> None:
    make, said = Counting(), []
    Remembered(tmp_path, 0, said.append).get("answers", 1, make)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    again = Remembered(tmp_path, 0, said.append).get("answers", 1, make)
    assert make.times == 2 and "damaged" in said[-1]
    assert Remembered(tmp_path, 0, said.append).get("answers", 1, make) == again
