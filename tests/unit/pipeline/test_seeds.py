"""Several seeds of one recipe: each trains anew what depends on its seed, and nothing else."""

from pathlib import Path

import pytest
from experiment import REGISTRY, Experiment, Listener, states

from prefopt.errors import InputError
from prefopt.pipeline.seeds import SeedsSummary, run_seeds
from prefopt.pipeline.summary import RunOptions
from prefopt.recipe.load import load

FIXED = ("stages.base.seed=1", "stages.other.seed=1")


def run(experiment: Experiment, count: int, *overrides: str) -> SeedsSummary:
    options = RunOptions(out=experiment.out, registry=REGISTRY, report=False)
    return run_seeds(load(experiment.recipe, overrides), options, Listener(), count)


def weights(folder: Path, stage: str) -> str:
    short = (folder / "stages" / stage / "current").read_text().strip()
    return (folder / "stages" / stage / short / "adapter" / "weights").read_text()


def test_what_does_not_depend_on_the_seed_is_made_once(experiment: Experiment) -> None:
    found = run(experiment, 3, *FIXED)
    assert list(found.runs) == [3, 4, 5] and found.exit_code == 0
    for stage, times in (("base", 1), ("other", 1), ("sft", 3), ("dpo", 3)):
        assert experiment.count(f"{stage} start") == times, stage
    folders = [experiment.out, *(experiment.out / "seeds" / str(seed) for seed in (4, 5))]
    for stage, different in (("base", 1), ("other", 1), ("sft", 3), ("dpo", 3)):
        assert len({weights(folder, stage) for folder in folders}) == different, stage
    assert states(found.runs[4]) == {"base": "skipped", "sft": "done", "other": "skipped", "dpo": "done"}
    assert any("no finished evaluate stage" in note or "not compared" in note for note in found.notes)


def test_the_first_seed_is_the_plain_run_and_more_seeds_only_add(experiment: Experiment) -> None:
    experiment.run()
    before = experiment.lines()
    run(experiment, 1)
    assert experiment.lines() == before
    run(experiment, 2)
    after = experiment.lines()
    run(experiment, 2)
    assert experiment.lines() == after and after[: len(before)] == before
    assert (experiment.out / "seeds" / "4" / "recipe.yaml").is_file()


def test_every_seed_can_be_judged_from_its_own_folder(experiment: Experiment) -> None:
    from prefopt.pipeline.status import run_status

    run(experiment, 2, *FIXED)
    status = run_status(experiment.out / "seeds" / "4", verify=True, registry=REGISTRY)
    assert {stage.stage: stage.state for stage in status.stages} == dict.fromkeys(
        ("base", "sft", "other", "dpo"), "done"
    )
    assert not any((path / "link").exists() for path in (experiment.out / "stages" / "base").iterdir())


def test_a_seed_that_fails_keeps_no_other_from_running_and_says_how_to_go_on(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 3, "what": "wait"}})
    found = run(experiment, 2)
    assert [states(summary)["sft"] for summary in found.runs.values()] == ["waiting", "waiting"]
    assert found.exit_code == 75
    experiment.behave({})
    assert run(experiment, 2).exit_code == 0


def test_seeds_that_would_all_be_the_same_are_refused(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="every stage has a 'seed' of its own"):
        run(experiment, 2, *(f"stages.{stage}.seed=1" for stage in ("base", "sft", "other", "dpo")))
