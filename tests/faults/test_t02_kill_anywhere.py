"""kill -9 at every file operation of the runner and of a stage's process: nothing finished is made again or changed."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from prefopt.pipeline import worker
from prefopt.pipeline.stages import Registry
from tests.faults.conftest import Count
from tests.faults.injection import Operation, kill, some
from tests.faults.runs import STAGES, Experiment, Strike

UNIT = Path(__file__).parents[1] / "unit" / "pipeline"
FAKE = ("base", "sft", "other", "dpo")
FEW = 3
MANY = 20
RECIPE = """\
name: faults
seed: 3
model: {model_name_or_path: base}
data: {rows: {path: rows.jsonl, format: preference}}
stages:
  base: {kind: pretrain, data: rows}
  sft: {kind: sft, data: rows}
  other: {kind: sft, data: rows, learning_rate: 3.0e-4}
  dpo: {kind: dpo, data: rows, init: sft}
"""


# -- every operation, on stages without a model ------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Four stages in which a chain of hashes stands for training; everything around them is real."""
    monkeypatch.syspath_prepend(str(UNIT))
    (tmp_path / "behaviour.json").write_text("{}")
    monkeypatch.setenv("FAKE_BEHAVIOUR", str(tmp_path / "behaviour.json"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    registry = Registry(modules=dict.fromkeys(("pretrain", "sft", "dpo"), "fake_stage"), preload=(), uses_torch=False)
    made = Experiment(tmp_path / "chain", RECIPE, registry=registry)
    (made.directory / "rows.jsonl").write_text('{"prompt": "a question", "chosen": "yes, please", "rejected": "no"}\n')
    return made


def sweep_chain(chain: Experiment, side: str, few: int | None) -> int:
    found = chain.operations(side)
    whole = chain.results(FAKE)
    points = some(len(found), few)
    for number in points:
        shutil.rmtree(chain.out.parent)
        ended = chain.run(Strike(side, number, kill))
        assert ended.killed or side != "runner", f"{found[number]} was not reached: {ended.error}"
        kept = chain.finished()
        again = chain.run()
        where = f"{side} killed at {number}: {found[number]}"
        assert not again.error and again.value["exit_code"] == 0, f"{where}\n{again}"
        changed = [name for name, state in chain.finished().items() if name in kept and kept[name] != state]
        assert changed == [], where
        assert chain.results(FAKE) == whole, where
    return len(points)


@pytest.mark.parametrize("side", ["runner", "sft"])
def test_t02_a_chain_killed_at_some_operations_ends_the_same(chain: Experiment, side: str) -> None:
    assert sweep_chain(chain, side, FEW) == FEW


@pytest.mark.sweep
@pytest.mark.parametrize("side", ["runner", "sft"])
def test_t02_a_chain_killed_at_every_operation_ends_the_same(chain: Experiment, side: str, count: Count) -> None:
    what = "runner" if side == "runner" else "stage process"
    tried = sweep_chain(chain, side, None)
    assert tried > 100
    count("T2", f"kill points, {what}", tried)


def test_t02_a_stage_that_were_made_again_would_be_noticed(chain: Experiment) -> None:
    assert not chain.run().error
    kept = chain.finished()
    assert not chain.run(start_from="base").error
    assert [name for name, state in chain.finished().items() if name in kept and kept[name] != state]


# -- real stages -------------------------------------------------------------------------------------------------------


def interesting(found: list[Operation], few: int) -> list[int]:
    """Every operation on the stage's own files, and some of those inside of a checkpoint, which T1 goes through."""
    inside = [number for number, each in enumerate(found) if "/checkpoints/" in each.path]
    outside = sorted(set(range(len(found))) - set(inside))
    return sorted([inside[place] for place in some(len(inside), few)] + outside)


def sweep_stage(whole: Experiment, folder: Path, stage: str, few: int | None) -> int:
    """Kills the process of a stage at its operations and runs it again; the number of kills."""
    later = STAGES[STAGES.index(stage) :]
    experiment = whole.copy(folder, later)
    found = experiment.operations(stage, only=(stage,))
    expected = whole.results((stage,))
    assert experiment.results((stage,)) == expected
    points = interesting(found, 4)
    points = points if few is None else [points[place] for place in some(len(points), few)]
    for number in points:
        shutil.rmtree(experiment.out / "stages" / stage)
        kept = experiment.finished()
        ended = experiment.run(Strike(stage, number, kill), only=(stage,))
        where = f"{stage} killed at {number}: {found[number]}"
        assert not ended.error and ended.value["exit_code"] == 3, f"{where}\n{ended}"
        assert "ended without a word (SIGKILL" in ended.value["errors"][stage][1], where
        again = experiment.run(only=(stage,))
        assert not again.error and again.value["exit_code"] == 0, f"{where}\n{again}"
        assert experiment.results((stage,)) == expected, where
        assert experiment.finished().items() >= kept.items(), where
        resumed = [int(step) for said in again.value["said"] for step in re.findall(r"resuming from step (\d+)", said)]
        saved = [int(step) for each in found[:number] for step in re.findall(r"/checkpoint-(\d+)$", each.to)]
        # A stage that was committed when the kill came is not run again, and so does not resume.
        assert max(resumed, default=0) >= max(saved, default=0) or again.value["states"][stage] == "skipped", where
    return len(points)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "pairs"])
def test_t02_a_real_stage_killed_at_some_operations_ends_the_same(
    whole: Experiment, tmp_path: Path, stage: str
) -> None:
    assert sweep_stage(whole, tmp_path, stage, 2) == 2


@pytest.mark.sweep
@pytest.mark.parametrize("stage", STAGES)
def test_t02_every_kind_of_real_stage_killed_at_operations_of_its_own_ends_the_same(
    whole: Experiment, tmp_path: Path, stage: str, count: Count
) -> None:
    tried = sweep_stage(whole, tmp_path, stage, MANY)
    assert tried == MANY
    count("T2", f"kill points, real stage {whole_kind(stage)}", tried)


def whole_kind(stage: str) -> str:
    return {"base": "pretrain", "pairs": "collect", "eval": "evaluate"}.get(stage, stage)


def test_t02_a_commit_that_is_believed_by_its_folder_alone_fails_the_sweep(
    chain: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a manifest that is written last, what a kill leaves behind is taken for the result."""

    def careless() -> None:
        commit = worker._commit

        def early(job, inputs, result, spent):
            commit(job, inputs, result, spent)  # the manifest first, and what it lists afterwards
            weights = job.directory / "adapter" / "weights"
            text = weights.read_text()
            weights.write_text(text)
            (job.directory / "adapter" / "more").write_text("x")
            return worker.manifests.read(job.directory)

        worker._commit = early

    chain.prepare = careless
    with pytest.raises(Exception, match=r"adapter/more is not in the manifest|has \d+ bytes|killed at"):
        sweep_chain(chain, "sft", None)


if sys.platform != "linux":
    pytest.skip("reads /proc", allow_module_level=True)
