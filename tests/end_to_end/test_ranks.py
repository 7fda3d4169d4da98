"""A stage on two processes, as a recipe asks for it: stopped, killed, and gone on with, it ends as one process does."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prefopt.store import manifest as manifests
from tests.end_to_end.small import alive, environment, wait_until
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.trainers.on_ranks import difference

pytestmark = pytest.mark.slow

RECIPE = """\
name: ranks
model: {model_name_or_path: ./base, dtype: float32, lora: {lora_r: 4, lora_dropout: DROPOUT}}
data: {rows: {path: rows.jsonl, eval_fraction: 0.2}}
stages:
  dpo:
    kind: dpo
    data: rows
    per_device_train_batch_size: BATCH
    max_steps: 60
    logging_steps: 1
    save_steps: 10
    accelerate: {num_processes: RANKS}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    base = tiny_llama()
    base.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    draw = random.Random(1)
    words = "the lamp is red chair costs nine euro".split()

    def text(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(2, most)))

    rows = [{"prompt": text(5), "chosen": text(6) + " a", "rejected": text(6)} for _ in range(57)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(world: Path, out: str, *, ranks: int, dropout: float = 0.0) -> list[str]:
    recipe = world / f"{ranks}-{dropout}.yaml"
    text = RECIPE.replace("RANKS", str(ranks)).replace("BATCH", str(8 // ranks)).replace("DROPOUT", str(dropout))
    recipe.write_text(text)
    return [sys.executable, "-m", "prefopt", "run", str(recipe), "--out", str(world / out)]


def done(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300, check=False)


@contextmanager
def running(words: list[str], said: Path) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("w") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=stream, env=environment(), start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def stage(world: Path, out: str) -> Path:
    (directory,) = (path for path in (world / out / "stages" / "dpo").iterdir() if path.is_dir())
    return directory


def adapter(world: Path, out: str) -> dict:
    return load_file(stage(world, out) / "adapter" / "adapter_model.safetensors")


def saved(world: Path, out: str, step: int) -> bool:
    return any((world / out / "stages").glob(f"dpo/*/checkpoints/checkpoint-{step}"))


def rank_pids(runner: int) -> dict[int, int]:
    """Processes of the ranks that a program started, by number."""
    parents: dict[int, int] = {}
    ranks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"prefopt.pipeline.rank" in (entry / "cmdline").read_bytes():
                found = re.search(rb"\0RANK=(\d+)\0", b"\0" + (entry / "environ").read_bytes())
                ranks.update({int(entry.name): int(found[1])} if found else {})
        except OSError:
            continue  # it has ended

    def ours(pid: int) -> bool:
        while pid > 1 and pid != runner:
            pid = parents.get(pid, 0)
        return pid == runner

    return {number: pid for pid, number in ranks.items() if ours(pid)}


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """Two ranks with dropout that nobody disturbed."""
    finished = done(command(world, "whole", ranks=2, dropout=0.2))
    assert finished.returncode == 0, finished.stderr
    return world


def test_two_processes_end_as_one_does_with_the_joined_batch(world: Path) -> None:
    for ranks in (1, 2):
        finished = done(command(world, f"on-{ranks}", ranks=ranks))
        assert finished.returncode == 0, finished.stderr
    assert difference(adapter(world, "on-2"), adapter(world, "on-1")) < 1e-5
    one, two = (manifests.read(stage(world, out)) for out in ("on-1", "on-2"))
    assert two.key != one.key and two.metrics.keys() == one.metrics.keys()
    timed = "train/tokens_per_second"
    assert {n: v for n, v in two.metrics.items() if n != timed} == pytest.approx(
        {n: v for n, v in one.metrics.items() if n != timed}, rel=1e-4, abs=1e-5
    )
    assert [output.path for output in two.outputs] == [output.path for output in one.outputs]
    # Every step is logged once, by the first rank alone.
    rows = [json.loads(line) for line in (stage(world, "on-2") / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/loss" in row and "summary" not in row]
    assert steps == list(range(1, 61))
    assert two.cost["flops"] == pytest.approx(one.cost["flops"], rel=0.02)
    again = done(command(world, "on-2", ranks=2))
    assert again.returncode == 0 and "skipped" in again.stdout


def test_ctrl_c_saves_on_all_ranks_and_the_same_command_goes_on(whole: Path) -> None:
    words = command(whole, "stopped", ranks=2, dropout=0.2)
    said = whole / "said"
    with running(words, said) as process:
        wait_until(lambda: saved(whole, "stopped", 10), lambda: process.poll() is not None, seconds=600)
        ranks = rank_pids(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(240) == 75, said.read_text()
    assert set(ranks) == {0, 1} and not any(map(alive, ranks.values()))
    stopped = re.search(r"stage dpo stopped at step (\d+); a checkpoint was saved", said.read_text())
    assert stopped, said.read_text()
    resumed = done(words)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from step {stopped[1]}" in resumed.stderr
    assert difference(adapter(whole, "stopped"), adapter(whole, "whole")) == 0


@pytest.mark.parametrize("number", [0, 1])
def test_t05_a_killed_rank_ends_the_others_and_the_stage_goes_on(whole: Path, number: int) -> None:
    out = f"killed-{number}"
    words = command(whole, out, ranks=2, dropout=0.2)
    said = whole / f"said-{number}"
    with running(words, said) as process:
        wait_until(lambda: saved(whole, out, 10), lambda: process.poll() is not None, seconds=600)
        ranks = rank_pids(process.pid)
        os.kill(ranks[number], signal.SIGKILL)
        assert process.wait(240) == 3, said.read_text()
    assert "one of the 2 processes of stage dpo ended without a word" in said.read_text()
    assert not any(map(alive, ranks.values()))
    resumed = done(words)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"resuming from step [1-5]0", resumed.stderr)
    assert difference(adapter(whole, out), adapter(whole, "whole")) == 0


def test_a_killed_runner_takes_all_ranks_with_it(whole: Path) -> None:
    words = command(whole, "runner", ranks=2, dropout=0.2)
    with running(words, whole / "said-runner") as process:
        wait_until(lambda: saved(whole, "runner", 10), lambda: process.poll() is not None, seconds=600)
        ranks = rank_pids(process.pid)
        assert set(ranks) == {0, 1}
        process.kill()
        wait_until(lambda: not any(map(alive, ranks.values())), seconds=15)


def test_an_error_of_the_ranks_is_the_errors_of_the_stage(whole: Path) -> None:
    words = command(whole, "wrong", ranks=2)
    refused = done([*words, "--set", "stages.dpo.max_length=9"])
    assert refused.returncode == 2, refused.stderr
    assert "max_dropped" in refused.stderr
