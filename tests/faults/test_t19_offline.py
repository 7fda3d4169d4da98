"""Nothing that runs needs the network: a whole run opens no socket, and a Hub that is needed is refused at once."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import pytest_socket

from tests.faults.conftest import without_sockets
from tests.faults.injection import forked
from tests.faults.runs import RECIPE, STAGES, Experiment


@pytest.mark.slow
def test_t19_a_run_of_every_kind_of_stage_opens_no_socket(whole: Experiment) -> None:
    """That it could not is how the run of this fixture was made; a stage that tried would have failed."""
    assert whole.prepare is without_sockets
    assert whole.results().keys() == set(STAGES)


def test_t19_a_socket_would_be_noticed() -> None:
    def open_one() -> str:
        without_sockets()
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except pytest_socket.SocketBlockedError as error:
            return type(error).__name__
        return "opened"

    ended = forked(open_one)
    assert "A test tried to use socket.socket" in ended.error or ended.value == "SocketBlockedError"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["model", "data"])
def test_t19_what_only_the_hub_has_is_refused_at_once_when_offline(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = RECIPE.replace("model_name_or_path: base", "model_name_or_path: nobody/nothing") if place == "model" else (
        RECIPE.replace("answers: {path: toy, name: demonstrations,", "answers: {path: nobody/nothing,")
    )  # fmt: skip
    experiment = Experiment(tmp_path / "experiment", recipe, prepare=without_sockets)
    start = time.monotonic()
    ended = experiment.run(only=("sft",) if place == "model" else ("base", "sft"))
    assert not ended.error, ended.error
    code, said = next(iter(ended.value["errors"].values()))  # of a data set already base, which asks what it holds out
    assert code == 3 and "nobody/nothing" in said and len(said.splitlines()) == 1, said
    assert time.monotonic() - start < 60
