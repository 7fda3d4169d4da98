"""The curves of distill stages, the limits of their guards, and the table of student and teacher."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.evaluation.distilled import beside_teacher
from prefopt.report.curves import Mark, sketch_of
from prefopt.report.distill_plots import DISTILL_CURVES
from prefopt.report.rundata import StageData
from prefopt.tracking.metrics import describe

BY_NAME = {curves.name: curves for curves in DISTILL_CURVES}


def stage(options: dict[str, Any], origin: dict[str, Any] | None, **series: list[float]) -> StageData:
    points = {name.replace("__", "/"): [*enumerate(map(float, values))] for name, values in series.items()}
    manifest: Any = SimpleNamespace(details={"guards": {"ended_by": None, "origin": origin}}, metrics={})
    return StageData("student", "distill", "done", options=options, series=points, manifest=manifest)


def test_every_curve_is_of_a_known_metric() -> None:
    assert all(describe(metric).meaning for curves in DISTILL_CURVES for metric, _ in curves.metrics)
    assert len(BY_NAME) == len(DISTILL_CURVES)


@pytest.mark.parametrize(
    ("options", "entropy", "nll"),
    [({}, 1.4, 3.3), ({"guards": {"min_entropy": 0.5, "max_nll": None}}, 1.0, None), ({"guards": None}, 1.4, 3.3)],
)
def test_guards_are_drawn_where_they_are(options: dict[str, Any], entropy: float, nll: float | None) -> None:
    found = stage(options, {"entropy": 2.0, "nll": 3.0}, distill__own_entropy=[1.9, 1.8], distill__real_nll=[3.0, 3.1])
    assert BY_NAME["distill-own-entropy"].marks(found) == (Mark("guard: collapsing", pytest.approx(entropy)),)
    expected = () if nll is None else (Mark("guard: forgets", pytest.approx(nll)),)
    assert BY_NAME["distill-real-nll"].marks(found) == expected
    assert sketch_of(BY_NAME["distill-own-entropy"], found) is not None
    assert sketch_of(BY_NAME["distill-kl"], found) is None, "nothing was logged"
    unfinished = replace(found, manifest=None)
    assert BY_NAME["distill-own-entropy"].marks(unfinished) == () == BY_NAME["distill-real-nll"].marks(unfinished)
    unwatched = stage(options, {"entropy": 2.0, "nll": None})
    assert BY_NAME["distill-real-nll"].marks(unwatched) == ()


def test_the_table_has_what_was_measured() -> None:
    metrics = {"distill/own_reward": 1.9, "distill/teacher_reward": 2.0, "distill/drift": 0.01234,
               "distill/prompt_ratio": 4.0}  # fmt: skip
    found = beside_teacher(metrics)
    assert found.columns == ("", "student", "teacher")
    assert [row[1:] for row in found.rows] == [("1.900", "2.000"), ("0.012", "–"), ("1.000", "4.000")]
    assert beside_teacher({}).rows == ()
