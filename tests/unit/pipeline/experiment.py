"""A recipe of fake stages in a folder of its own, and the ways to run it. Also a program: `experiment.py FOLDER`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import prefopt
from prefopt.pipeline.runner import run_recipe
from prefopt.pipeline.stages import Registry
from prefopt.pipeline.status import RunStatus, run_status
from prefopt.pipeline.summary import RunOptions, RunSummary
from prefopt.recipe.load import load

KINDS = ("pretrain", "sft", "dpo", "evaluate")
REGISTRY = Registry(
    modules=dict.fromkeys(KINDS, "fake_stage"), preload=("prefopt.pipeline.worker", "fake_stage"), uses_torch=False
)
RECIPE = """\
name: fake
seed: 3
model: {model_name_or_path: base}
data:
  rows: {path: rows.jsonl, format: preference}
stages:
  base: {kind: pretrain, data: rows}
  sft: {kind: sft, data: rows}
  other: {kind: sft, data: rows, learning_rate: 3.0e-4}
  dpo: {kind: dpo, data: rows, init: sft}
"""


class Listener:
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self.finished: list[tuple[str, str]] = []

    def stage_started(self, stage: str, kind: str, index: int, total: int) -> None:
        assert 1 <= index <= total

    def progress(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((stage, step))

    def stage_finished(self, stage: str, state: str, seconds: float, headline: str = "") -> None:
        self.finished.append((stage, state))

    def message(self, text: str) -> None:
        self.messages.append(text)


class Experiment:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        self.out = folder / "runs" / "fake"
        self.log = folder / "log"
        self.listener = Listener()
        if not self.recipe.exists():
            self.recipe.write_text(RECIPE)
            row = {"prompt": "a question", "chosen": "yes, please", "rejected": "no"}
            (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
            self.behave({})

    def environment(self) -> dict[str, str]:
        paths = [str(Path(__file__).parent), str(Path(prefopt.__file__).parents[1])]
        return {
            "FAKE_BEHAVIOUR": str(self.folder / "behaviour.json"),
            "FAKE_LOG": str(self.log),
            "PREFOPT_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def behave(self, behaviour: dict[str, dict[str, Any]]) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

    def run(self, *overrides: str, **options: Any) -> RunSummary:
        self.listener = Listener()
        settings = RunOptions(**{"out": self.out, "registry": REGISTRY, "report": False, **options})
        return run_recipe(load(self.recipe, overrides), settings, self.listener)

    def status(self, verify: bool = False) -> RunStatus:
        return run_status(self.out, verify=verify, registry=REGISTRY)

    def start(self) -> subprocess.Popen[str]:
        """The same run as a program of its own, which tests can send signals to."""
        return subprocess.Popen(
            [sys.executable, __file__, str(self.folder)],
            env={**os.environ, **self.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def count(self, text: str) -> int:
        return sum(line.startswith(text) for line in self.lines())

    def adapter(self, stage: str) -> Path:
        short = (self.out / "stages" / stage / "current").read_text().strip()
        return self.out / "stages" / stage / short / "adapter" / "weights"

    def adapters(self) -> dict[str, str]:
        return {stage: self.adapter(stage).read_text() for stage in ("base", "sft", "other", "dpo")}


def states(summary: RunSummary) -> dict[str, str]:
    return {outcome.stage: outcome.state for outcome in summary.stages}


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# No guard: a user's script has none either, and a stage's process must not run it again.
if len(sys.argv) == 2 and sys.argv[0] == __file__:
    _made = Experiment(Path(sys.argv[1]))
    _summary = _made.run()
    print(json.dumps(_summary.to_json()))
    print("\n".join(_made.listener.messages))
    sys.exit(_summary.exit_code)
