"""The curves of ppo and the healthy ranges behind them."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prefopt.report import render
from prefopt.report.curves import Curves, Mark, sketch_of
from prefopt.report.ppo_plots import PPO_CURVES
from prefopt.report.rundata import StageData
from prefopt.tracking.metrics import METRICS
from tests.run_folder import RECIPE, WITH_PPO, RunFolder
from tests.unit.report.test_render import Page

BY_NAME = {curves.name: curves for curves in PPO_CURVES}


def stage_of(options=None, **series):
    points = {name: [(float(i), float(v)) for i, v in enumerate(values)] for name, values in series.items()}
    return StageData("ppo", "ppo", "done", options=options or {}, series=points)


def axes_of(curves, stage):
    figure = Figure(figsize=(5.4, 2.9))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sketch_of(curves, stage).paint(axes)
    return axes


def marks(name, stage):
    return [(mark.label, mark.low, mark.high) for mark in BY_NAME[name].marks(stage)]


def plain_curves(*found, **options):
    return Curves("x", "X", "", "y", (("a", "a"),), marks=lambda stage: found, **options)


def test_every_curve_is_of_a_known_metric_and_has_its_own_name():
    assert {metric for curves in PPO_CURVES for metric, _ in curves.metrics} <= set(METRICS)
    assert len(BY_NAME) == len(PPO_CURVES) and all(curves.group for curves in PPO_CURVES)


def test_the_plots_of_ppo_are_drawn_in_groups_and_as_png(tmp_path):
    folder = RunFolder(tmp_path / "run", recipe=WITH_PPO)
    folder.ppo()
    text = render(folder.run.root).read_text(encoding="utf-8")
    page = Page(text)
    places = [page.text.index(heading) for heading in ("What it earns", "How it writes", "How it learns")]
    assert places == sorted(places)
    drawn = {path.name for path in (folder.run.root / "report" / "plots").iterdir()}
    assert drawn == {f"ppo-{name}.png" for name in BY_NAME if name != "imitation"}
    for label in ("healthy below 0.02", "target (4)", "↑ training ends (90)", "twice the first", "guard: too certain"):
        assert label in page.text, label
    assert "mathdefault" not in text and ">1e-5<" in text


def test_other_stages_have_the_plots_that_they_had(tmp_path):
    folder = RunFolder(tmp_path / "run", recipe=RECIPE)
    folder.train("sft")
    page = Page(render(folder.run.root).read_text(encoding="utf-8"))
    assert "How it learns" not in page.text
    assert [path.name for path in (folder.run.root / "report" / "plots").iterdir()] == ["sft-loss.png"]


def test_limits_are_those_of_the_recipe():
    stage = stage_of({"kl": {"adaptive_target": 6, "stop_above": 20.0}, "max_grad_norm": 0.5})
    assert marks("kl", stage) == [("target (6)", 6.0, None), ("training ends (20)", 20.0, None)]
    assert marks("grad-norm", stage) == [("cut above 0.5", 0.5, None)]
    assert marks("kl", stage_of()) == [] and marks("grad-norm", stage_of()) == [("cut above 1", 1.0, None)]


@pytest.mark.parametrize(
    ("guards", "expected"),
    [({}, [0.2 * 0.8]), ({"min_entropy": 0.5}, [0.5 * 0.8]), ({"min_entropy": None}, []), ({"min_entropy": "x"}, [])],
)
def test_a_guard_is_relative_to_the_first_value(guards, expected):
    stage = stage_of({"guards": guards}, **{"ppo/entropy": [0.8, 0.5]})
    assert [low for _, low, _ in marks("entropy", stage)] == expected
    assert marks("entropy", stage_of({"guards": guards})) == []


def test_repetition_is_compared_with_the_first_value():
    assert marks("repetition", stage_of(**{"ppo/repetition": [0.03, 0.2]})) == [("twice the first", 0.06, None)]
    assert marks("repetition", stage_of(**{"ppo/repetition": [0.0, 0.2]})) == []


@pytest.mark.parametrize("block", [3, [1], {"stop_above": "<b>"}, {"stop_above": True}, {"stop_above": float("inf")}])
def test_a_damaged_limit_is_not_drawn(block):
    assert marks("kl", stage_of({"kl": block})) == []


def test_a_coefficient_is_drawn_where_it_changes():
    assert sketch_of(BY_NAME["kl-coefficient"], stage_of(**{"ppo/kl_coefficient": [0.1, 0.1, 0.1]})) is None
    assert sketch_of(BY_NAME["kl-coefficient"], stage_of(**{"ppo/kl_coefficient": [0.1, 0.1, 0.2]})) is not None


def test_more_curves_than_colours_are_all_drawn():
    names = [f"m{number}" for number in range(8)]
    curves = Curves("x", "X", "", "y", tuple((name, name) for name in names))
    axes = axes_of(curves, stage_of(**{name: [0.0, float(name[1:])] for name in names}))
    assert [line.get_label() for line in axes.lines] == names


def test_a_line_is_in_view_and_one_that_is_far_away_is_named_at_the_edge():
    near, far = Mark("near", 3.0), Mark("far", 60.0)
    axes = axes_of(plain_curves(near, far), stage_of(a=[1.0, 2.0]))
    low, high = axes.get_ylim()
    assert low < 1.0 and 3.0 < high < 60.0
    assert sorted(text.get_text() for text in axes.texts) == ["near", "↑ far"]


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, -3.0], [5.0, 5.0], [1e-30, 2e-30], [-1e20, 1e20]])
def test_any_values_can_be_marked(values):
    axes = axes_of(plain_curves(Mark("band", 0.0, 1.0), Mark("line", 0.5)), stage_of(a=values))
    low, high = axes.get_ylim()
    assert low <= min(values) and high >= max(values)


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 0, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 0, 0, 0, 0, 0]])
def test_a_label_stands_where_the_curve_is_not(values):
    axes = axes_of(plain_curves(Mark("band", 8.0, 10.0)), stage_of(a=values))
    (label,) = axes.texts
    assert label.get_horizontalalignment() == ("right" if values[-1] == 0 else "left")
    assert 0 < label.get_position()[1] < 1


def test_zeros_are_drawn_on_a_linear_scale():
    assert axes_of(plain_curves(log_scale=True), stage_of(a=[0.0, 1e-6])).get_yscale() == "linear"
    assert axes_of(plain_curves(log_scale=True), stage_of(a=[1e-7, 1e-6])).get_yscale() == "log"
