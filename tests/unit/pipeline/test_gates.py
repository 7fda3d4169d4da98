"""Gates end a run with exit code 6, say why, and never make anything run again."""

from pathlib import Path

import pytest
from experiment import Experiment, states

from prefopt.errors import GateRefused, InputError, RecipeError
from prefopt.evaluation import gates
from prefopt.recipe.load import load
from prefopt.recipe.scorers import RequireSpec

METRICS = {"win_rate/mean": 0.6, "win_rate/ci_low": 0.55, "win_rate/ci_high": 0.65, "eval/loss": 0.5}


def judged(name: str, **bounds: float) -> None:
    gates.require("eval", {name: RequireSpec(**bounds)}, METRICS, Path("stages/eval/0"))


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("win_rate", {"min": 0.6, "max": 0.6, "lower_bound": 0.55, "upper_bound": 0.65}),
        ("eval/loss", {"max": 0.5}),
        ("win_rate/ci_low", {"min": 0.55}),
    ],
)
def test_a_bound_that_is_met_is_met_exactly(name: str, bounds: dict[str, float]) -> None:
    judged(name, **bounds)
    for bound, value in bounds.items():
        stricter = value - 1e-9 if bound in ("max", "upper_bound") else value + 1e-9
        with pytest.raises(GateRefused):
            judged(name, **{bound: stricter})


@pytest.mark.parametrize(
    ("name", "bounds", "words"),
    [
        ("win_rate", {"min": 0.61}, "at least 0.61"),
        ("win_rate", {"max": 0.59}, "at most 0.59"),
        ("win_rate", {"lower_bound": 0.56}, "lie above 0.56"),
        ("win_rate", {"upper_bound": 0.64}, "lie below 0.64"),
        ("eval/loss", {"max": 0.4}, "0.5, and must be at most 0.4"),
    ],
)
def test_a_bound_that_is_not_met_names_value_bound_and_what_to_look_at(
    name: str, bounds: dict[str, float], words: str
) -> None:
    with pytest.raises(GateRefused) as caught:
        judged(name, **bounds)
    assert caught.value.exit_code == 6
    assert words in caught.value.message and name in caught.value.message
    assert "look at" in caught.value.remedy and "stages/eval/0" in caught.value.remedy
    if name == "win_rate":
        assert "0.6 [0.55, 0.65]" in caught.value.message


def test_all_broken_bounds_are_told_at_once() -> None:
    wanted = {"win_rate": RequireSpec(min=0.9), "eval/loss": RequireSpec(max=0.1)}
    with pytest.raises(GateRefused, match=r"win_rate is 0\.6 .*; eval/loss is 0\.5"):
        gates.require("eval", wanted, METRICS, Path("there"))


@pytest.mark.parametrize(
    ("name", "bounds", "words"),
    [
        ("win_rat", {"min": 0.5}, "did you mean 'win_rate'"),
        ("eval/loss", {"lower_bound": 0.1}, "use 'min' or 'max'"),
    ],
)
def test_what_was_not_measured_cannot_be_required(name: str, bounds: dict[str, float], words: str) -> None:
    with pytest.raises(InputError) as caught:
        judged(name, **bounds)
    assert words in str(caught.value) and not isinstance(caught.value, GateRefused)


GATE = "stages.sft.require={train/loss: {max: %s}}"


def test_a_refused_stage_stops_what_reads_it_and_nothing_else(experiment: Experiment) -> None:
    summary = experiment.run(GATE % 0.2)
    assert states(summary) == {"base": "done", "sft": "refused", "other": "done", "dpo": "blocked"}
    assert summary.exit_code == 6 and "train/loss is 0.25" in summary.errors[0].message
    status = {stage.stage: stage for stage in experiment.status().stages}
    assert status["sft"].state == "refused" and "at most 0.2" in status["sft"].next
    # Again: nothing is trained, and the answer is the same.
    steps = experiment.count("sft step")
    assert states(experiment.run(GATE % 0.2))["sft"] == "refused" and experiment.count("sft step") == steps
    # A bound that holds lets the rest go on, and the finished stage is not made again.
    summary = experiment.run(GATE % 0.3)
    assert states(summary) == {"base": "skipped", "sft": "skipped", "other": "skipped", "dpo": "done"}
    assert experiment.count("sft step") == steps
    # Also a finished stage that reads a refused one is not offered as if it were sound.
    assert states(experiment.run(GATE % 0.2))["dpo"] == "blocked"


def test_a_gate_guards_a_stage_that_reads_nothing_of_it(experiment: Experiment) -> None:
    after = "stages.dpo.after=other"
    gate = "stages.other.require={train/loss: {max: 0.2}}"
    assert states(experiment.run(after, gate))["dpo"] == "blocked"
    first = experiment.run(after)
    assert states(first)["dpo"] == "done"
    # What is only waited for is no part of the key.
    assert states(experiment.run())["dpo"] == "skipped"
    assert states(experiment.run(after, "stages.other.learning_rate=0.5"))["dpo"] == "skipped"


def test_a_metric_that_there_is_not_is_refused_before_anything_runs(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="did you mean 'sft:win_rate'"):
        experiment.run("stages.sft.require={'sft:win_rat': {min: 1.0}}")
    assert not experiment.out.exists()


def test_all_gates_on_metrics_that_there_are_not_are_told_with_their_lines(tmp_path: Path) -> None:
    recipe = tmp_path / "gated.yaml"
    recipe.write_text(
        "name: gated\nmodel: {model_name_or_path: hub/model}\ndata: {d: {path: toy, name: preferences}}\nstages:\n"
        "  dpo:\n    kind: dpo\n    data: d\n    require:\n      eval/dpo/acuracy: {min: 0.6}\n"
        "      eval/loss: {max: 1}\n      dpo/margn: {min: 0}\n"
    )
    with pytest.raises(RecipeError) as caught:
        gates.check_names(load(recipe, ["stages.dpo.require.eval/secnds={max: 9}"]))
    places, remedies = zip(*((each.where, each.remedy) for each in caught.value.problems), strict=True)
    assert places[:2] == (f"{recipe}:9", f"{recipe}:11") and places[2].startswith("--set")
    assert remedies == tuple(f"did you mean '{name}'?" for name in ("eval/dpo/accuracy", "dpo/margin", "eval/seconds"))


def test_a_gate_on_what_the_stage_does_not_measure_is_an_error_of_the_recipe(experiment: Experiment) -> None:
    summary = experiment.run("stages.sft.require={win_rate: {min: 0.5}}")
    assert states(summary)["sft"] == "failed" and summary.exit_code == 2
