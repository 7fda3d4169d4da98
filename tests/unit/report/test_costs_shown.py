"""What costs is marked where it is, in the words of whoever wrote it, and nothing of it becomes markup."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from prefopt.report import render
from prefopt.report.evaluation import table_of
from prefopt.report.format import Segment, segments
from prefopt.report.penalty_plots import penalty_curves
from prefopt.report.rundata import StageData
from prefopt.report.samples import samples_of
from tests.run_folder import HOSTILE, RunFolder
from tests.unit.report.test_render import Page

TEXTS = st.text(alphabet=st.sampled_from("ab <&\u202e\u200b\x00漢"), max_size=20)
SPANS = st.lists(st.tuples(st.integers(-3, 25), st.integers(-3, 25), st.sampled_from(["one", "two"])), max_size=5)


def test_spans_are_marked_with_the_costs_that_they_are_of() -> None:
    found = segments("a bad word", (), [(2, 5, "banned"), (4, 10, "length")])
    assert found == [
        Segment("text", "a "), Segment("mark", "ba", "banned"), Segment("mark", "d", "banned, length"),
        Segment("mark", " word", "length"),
    ]  # fmt: skip
    assert segments("bad", (), [(0, 3, "banned")]) == [Segment("mark", "bad", "banned")]
    assert segments("a bad", ("bad",), [(0, 1, "x")]) == [
        Segment("mark", "a", "x"), Segment("text", " "), Segment("mark", "bad"),
    ]  # fmt: skip


@given(TEXTS, SPANS)
def test_whatever_the_spans_the_text_stays_whole(text: str, spans: list[tuple[int, int, str]]) -> None:
    plain, marked = segments(text), segments(text, (), spans)
    assert "".join(each.text for each in marked) == "".join(each.text for each in plain)
    controls = [each for each in plain if each.kind == "control"]
    assert [each for each in marked if each.kind == "control"] == controls
    inside = {place for start, end, _ in spans for place in range(max(0, start), min(end, len(text)))}
    assert sum(len(each.text) for each in marked if each.kind == "mark") == len(
        [place for place in inside if segments(text[place])[0].kind != "control"]
    )


def test_damaged_spans_and_costs_are_left_out() -> None:
    rows = [
        {"prompt": "p", "completion": "a bad word", "spans": {"x": [[2, 5], [1], "no", [0, "1"], [True, 2]], "y": 3},
         "costs": {"x": 1.5, "y": "much", "z": float("nan"), "zero": 0.0}},
        {"prompt": "q", "completion": "fine", "spans": "no", "costs": [1]},
    ]  # fmt: skip
    shown = samples_of(StageData("eval", "evaluate", "done", samples=tuple(rows)))
    assert shown is not None
    (first,), (second,) = (item.answers for item in shown.items)
    assert [each for each in first.text if each.kind == "mark"] == [Segment("mark", "bad", "x")]
    assert first.costs == [([Segment("text", "x")], "1.50")] and second.costs == []


def test_hostile_names_of_costs_are_text(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.evaluate(prompts=3)
    path = folder.folder("eval") / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        name = HOSTILE[number % len(HOSTILE)]
        row |= {"completion": HOSTILE[0], "spans": {name: [[0, 8]]}, "costs": {name: 1.0}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = render(folder.run.root).read_text()
    page = Page(html)
    assert "<script" not in html.lower().replace("&lt;script", "") and "onerror" not in html.replace(
        "onerror=&#34;", ""
    )
    assert "<mark title=" in html and HOSTILE[0] in page.text


def test_rates_and_costs_have_a_table_of_their_own() -> None:
    metrics = {"violation_rate/banned": 0.1, "cost/banned": 0.2, "kl": 1.0, "violation_rate": 0.3}
    named = {f"dpo:{name}/{part}": value for name, value in metrics.items() for part in ("mean", "ci_low", "ci_high")}
    stage = StageData("eval", "evaluate", "done", series={name: [(0.0, value)] for name, value in named.items()})
    table = table_of(stage)
    assert table is not None
    titles = {part.title: [column.title for column in part.columns] for part in table.parts}
    assert titles == {"": ["KL", "violations"], "Violations and costs": ["banned: cost", "banned: violations"]}


def test_penalties_are_drawn_with_their_targets() -> None:
    series = {
        f"penalty/{name}/{each}": [(0.0, 0.1), (1.0, 0.2)]
        for name in ("banned", "length") for each in ("rate", "weight", "term")
    }  # fmt: skip
    listed = [{"cost": "banned", "target_rate": 0.01}, {"cost": "length", "weight": 1}, "damaged"]
    stage = StageData("ppo", "ppo", "done", options={"reward": {"penalties": listed}}, series=series)
    rate, weight, term = penalty_curves(stage)
    assert [metric for metric, _ in rate.metrics] == ["penalty/banned/rate", "penalty/length/rate"]
    assert [mark.label for mark in rate.marks(stage)] == ["target of banned (0.01)"]
    assert {rate.name, weight.name, term.name} == {"penalty-rate", "penalty-weight", "penalty-term"}
    assert penalty_curves(StageData("ppo", "ppo", "done")) == ()


def test_a_mean_that_is_held_is_drawn_with_its_target() -> None:
    names = ("banned", "length", "loud", "odd")
    series = {
        f"penalty/{name}/{each}": [(0.0, 0.1), (1.0, 0.2)]
        for name in names for each in ("cost", "rate", "weight", "term")
    }  # fmt: skip
    listed = [
        {"cost": "banned", "target_rate": 0.01}, {"cost": "length", "weight": 1},
        {"cost": "plugin", "name": "loud", "target_mean": 0.25}, {"cost": "odd", "target_mean": "much"},
    ]  # fmt: skip
    stage = StageData("ppo", "ppo", "done", options={"reward": {"penalties": listed}}, series=series)
    rate, cost, _, _ = penalty_curves(stage)
    assert [mark.label for mark in rate.marks(stage)] == ["target of banned (0.01)"]
    assert cost.name == "penalty-cost" and cost.metrics == (("penalty/loud/cost", "loud"),)
    assert [(mark.label, mark.low) for mark in cost.marks(stage)] == [("target of loud (0.25)", 0.25)]
