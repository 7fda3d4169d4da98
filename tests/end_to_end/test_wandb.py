"""wandb in a recipe: offline as asked, offline by itself without key or server, and one run across resumes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.small import Warm, folder, wait_until, words, worker_pid
from tests.wandb_file import OfflineRun

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef" * 2 + "01234567"
FALLBACK_SECONDS = 15


def line(out: Path, mode: str, *stages: str) -> list[str]:
    tracking = ("--set", f"tracking={{wandb: {{project: proj, mode: {mode}}}}}")
    return words(out, *tracking, *(word for stage in stages for word in ("--only", stage)))


def stage_folder(out: Path, stage: str) -> Path:
    directory = folder(out, stage)
    assert directory is not None
    return directory


def logged(directory: Path) -> list[dict[str, float]]:
    rows = [json.loads(row) for row in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "step")} for row in rows if not row.get("summary")]


@pytest.fixture
def refused() -> Iterator[str]:
    """Address of a port where nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_offline_holds_every_number_under_the_same_name(out: Path, warm: Warm) -> None:
    done = warm.run(line(out, "offline", "base", "sft"))
    assert done.returncode == 0, done.stderr
    for stage in ("base", "sft"):
        directory = stage_folder(out, stage)
        run = OfflineRun(directory)
        assert (run.run.project, run.run.run_group, run.run.display_name) == ("proj", "small", stage)
        assert run.run.run_id == (directory / "wandb_run_id").read_text().strip()
        sent = [{k: v for k, v in row.items() if k != "step" and not k.startswith("_")} for row in run.history]
        merged: dict[str, float] = {}
        for row in sent:
            merged |= row
        last: dict[str, float] = {}
        for row in logged(directory):
            last |= row
        assert merged == last
        assert run.config["max_steps"] in (7, 8)
        assert f"{stage}: wandb: to send the run later: wandb sync {run.path.parent}" in done.stderr
    assert "failed" not in done.stderr


def test_without_a_server_the_run_completes_offline_with_one_warning(out: Path, warm: Warm, refused: str) -> None:
    start = time.monotonic()
    done = warm.run(line(out, "online", "base", "sft"), WANDB_BASE_URL=refused, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 2 * FALLBACK_SECONDS
    assert done.stderr.count("is recorded offline") == 1
    assert f"wandb: {refused} does not answer" in done.stderr
    assert KEY not in done.stderr and KEY not in done.stdout
    directory = stage_folder(out, "sft")
    assert OfflineRun(directory).history
    assert done.stderr.count("wandb sync ") == 2
    leaks = [path for path in out.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert leaks == []


def test_without_a_key_the_run_completes_offline(out: Path, warm: Warm) -> None:
    done = warm.run(line(out, "online", "base"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no API key (WANDB_API_KEY or `wandb login`); the run is recorded offline") == 1
    assert "wandb sync " in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 3), (signal.SIGTERM, 75)])
def test_the_run_is_the_same_one_after_a_resume(out: Path, warm: Warm, number: int, code: int) -> None:
    warm.start(line(out, "offline", "base"))
    wait_until(lambda: (found := folder(out, "base")) and (found / "checkpoints" / "checkpoint-3").exists())
    worker = worker_pid(out, "base")
    assert worker is not None
    os.kill(worker, number)
    stopped = warm.result()
    assert stopped.returncode == code, stopped.stderr
    directory = stage_folder(out, "base")
    run_id = (directory / "wandb_run_id").read_text().strip()
    done = warm.run(line(out, "offline", "base"))
    assert done.returncode == 0, done.stderr
    assert "base: resuming from step" in done.stderr and "failed" not in done.stderr
    assert (directory / "wandb_run_id").read_text().strip() == run_id
    folders = sorted((directory / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(path.name.endswith(f"-{run_id}") for path in folders)
    resumed = OfflineRun(directory, 1)
    assert resumed.run.run_id == run_id and resumed.history[-1]["step"] == 8
    if number == signal.SIGTERM:  # what wandb had not written when it was killed is gone
        first = OfflineRun(directory, 0)
        assert first.run.run_id == run_id and first.history[-1]["step"] < resumed.history[0]["step"]


def test_the_evaluation_is_sent_with_its_samples(out: Path, warm: Warm) -> None:
    done = warm.run(line(out, "offline"))
    assert done.returncode == 0, done.stderr
    directory = stage_folder(out, "eval")
    run = OfflineRun(directory)
    assert (run.run.display_name, run.run.job_type) == ("eval", "evaluate")
    metrics = json.loads((directory / "metrics.json").read_text())
    assert "dpo:gold/mean" in metrics
    assert {name: run.summary[name] for name in metrics} == pytest.approx(metrics)
    assert any(name.startswith("samples") for row in run.history for name in row)
