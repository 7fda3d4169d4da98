import math

import pytest

from prefopt.report.curves import MOST_POINTS, thin
from prefopt.report.drawing import inline_svg
from prefopt.report.evaluation import estimates, table_of, verdict
from prefopt.report.format import decimals, fixed, flatten, number, quantity, segments
from prefopt.report.rundata import RunData, StageData
from prefopt.report.samples import samples_of
from prefopt.store.manifest import Manifest


def evaluation(metrics, baseline="sft", samples=()):
    manifest = Manifest("eval", "evaluate", "0" * 64, 1, metrics=metrics, details={"baseline": baseline})
    return StageData("eval", "evaluate", "done", manifest=manifest, samples=tuple(samples))


def run_of(*stages):
    return RunData("run", "", tuple(stages), "", {}, ())


def rate(policy, mean, low, high, name="win_rate"):
    return {f"{policy}:{name}/mean": mean, f"{policy}:{name}/ci_low": low, f"{policy}:{name}/ci_high": high}


@pytest.mark.parametrize(
    ("metrics", "text", "tone"),
    [
        (rate("dpo", 0.71, 0.66, 0.76), "dpo beats sft: win rate 0.71 [0.66, 0.76]", "good"),
        (rate("dpo", 0.31, 0.26, 0.36), "dpo loses to sft: win rate 0.31 [0.26, 0.36]", "bad"),
        (rate("dpo", 0.52, 0.45, 0.59), "No difference shown between dpo and sft: win rate 0.52 [0.45, 0.59]", "open"),
        (rate("dpo", 0.55, 0.50, 0.60), "No difference shown between dpo and sft: win rate 0.55 [0.50, 0.60]", "open"),
        ({"dpo:win_rate/mean": 0.9}, "No difference shown between dpo and sft: win rate 0.90, no interval", "open"),
        (
            rate("dpo", 0.7, 0.6, 0.8, "preference/accuracy"),
            "dpo ranks held-out pairs better than chance: preference accuracy 0.70 [0.60, 0.80]",
            "good",
        ),
        (
            rate("dpo", 0.7, 0.6, 0.8) | rate("ppo", 0.5, 0.4, 0.6),
            "dpo beats sft: win rate 0.70 [0.60, 0.80]; "
            "No difference shown between ppo and sft: win rate 0.50 [0.40, 0.60]",
            "open",
        ),
        ({"sft:gold/mean": 1.0}, "Not evaluated: no stage compares policies", "open"),
    ],
)
def test_the_verdict_claims_what_the_interval_shows(metrics, text, tone):
    found = verdict(run_of(evaluation(metrics)))
    assert (found.text, found.tone) == (text, tone)


def test_the_verdict_without_an_evaluation():
    stages = [StageData("sft", "sft", "done"), StageData("dpo", "dpo", "unfinished")]
    assert verdict(run_of(*stages)).text == "Not evaluated yet: 1 of 2 stages are done"


def test_the_table_puts_the_baseline_first_and_aligns_digits():
    metrics = rate("dpo", 0.7, 0.6, 0.8) | {"dpo:length/mean": 7.25, "sft:length/mean": 112.5, "sft:zeta": 3.0}
    table = table_of(evaluation(metrics))
    assert [row.policy for row in table.rows] == ["sft", "dpo"]
    assert [(column.name, column.decimals) for column in table.columns] == [("win_rate", 2), ("length", 0), ("zeta", 2)]
    assert table.rows[0].cells[0] is None and table.rows[1].cells[0].low == 0.6
    assert table_of(evaluation({})) is None


def test_what_matters_first_has_a_table_of_its_own():
    names = ("zeta", "distinct/pairs", "win_rate_length_controlled", "violation_rate", "reward", "win_rate")
    metrics = {f"dpo:{name}/mean": 0.5 for name in names} | {"sft:zeta": 1.0}
    first, others = table_of(evaluation(metrics)).parts
    assert [column.name for column in first.columns] == ["win_rate", "reward", "violation_rate"]
    assert [row.policy for row in first.rows] == ["dpo"] and first.title == ""
    assert [column.title for column in others.columns] == ["win rate at equal length", "different word pairs", "zeta"]
    assert [row.policy for row in others.rows] == ["sft", "dpo"] and others.title == "More about the answers"
    assert others.rows[0].cells[:2] == (None, None) and others.rows[0].cells[2].mean == 1.0
    assert len(table_of(evaluation({"dpo:zeta": 1.0})).parts) == 1


def test_policies_with_any_name_are_kept_apart():
    found = estimates({"a.b@1:kl/mean": 1.0, "a:kl/mean": 2.0, "loss": 3.0, "a:kl/ci_low": 1.5, "b:kl/ci_low": 1.0})
    assert {policy: {n: e.mean for n, e in values.items()} for policy, values in found.items()} == {
        "a.b@1": {"kl": 1.0},
        "a": {"kl": 2.0},
        "b": {},
    }


def row(policy, prompt, gold, completion="text"):
    return {"policy": policy, "prompt": [{"role": "user", "content": prompt}], "completion": completion, "gold": gold}


def test_samples_span_the_worst_to_the_best():
    rows = [row("sft", f"p{i:03d}", 0.0) for i in range(101)] + [row("dpo", f"p{i:03d}", float(i)) for i in range(101)]
    shown = samples_of(evaluation({}, samples=rows), count=3)
    assert [sample.prompt[0][1][0].text for sample in shown.items] == ["p000", "p050", "p100"]
    assert [answer.policy for answer in shown.items[0].answers] == ["sft", "dpo"]
    assert shown.rule.startswith("3 of 101 prompts, evenly spaced from the largest loss")


def test_few_samples_are_all_shown_once():
    rows = [row("dpo", "p", 1.0, "first"), row("dpo", "p", 2.0, "second"), row("sft", "p", None), {"policy": "x"}]
    shown = samples_of(evaluation({}, samples=rows))
    assert len(shown.items) == 2
    assert [answer.text[0].text for answer in shown.items[0].answers] == ["text", "first"]
    assert samples_of(evaluation({})) is None


def test_thinning_keeps_the_range_and_the_ends():
    points = [(float(i), math.sin(i / 500)) for i in range(100_000)]
    thinned = thin(points)
    assert len(thinned) == MOST_POINTS
    assert min(row[2] for row in thinned) == min(value for _, value in points)
    assert max(row[3] for row in thinned) == max(value for _, value in points)
    assert all(low <= mean <= high for _, mean, low, high in thinned)
    assert thinned[0][0] < 400 and thinned[-1][0] > 99_600
    assert [row[0] for row in thin(points[:5])] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_an_inline_drawing_is_one_element_with_its_own_ids():
    document = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg width="9pt" viewBox="0 0 9 9"><metadata>\n<a/></metadata>'
        '<path id="m1" style="fill: #2a5db0"/><use xlink:href="#m1" clip-path="url(#p)"/></svg>'
    )
    assert inline_svg(document, "plot3", "<b>") == (
        '<svg viewBox="0 0 9 9" role="img"><title>&lt;b&gt;</title>'
        '<path id="plot3-m1" style="fill: var(--series-1)"/>'
        '<use xlink:href="#plot3-m1" clip-path="url(#plot3-p)"/></svg>'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.0, "3"),
        (-0.5, "\u22120.500"),
        (0.00012, "1.20e\u221204"),
        (1234.5, "1\u2009234.5"),
        (12.345, "12.35"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_columns_of_numbers():
    assert fixed(-0.001, 2) == "0.00" and fixed(-1.5, 1) == "\u22121.5" and fixed(12345.6, 0) == "12\u2009346"
    assert [decimals(values) for values in ([], [0.01], [0.5], [12.0], [-340.0])] == [3, 3, 2, 1, 0]


def test_quantities_have_units():
    assert quantity("wall_seconds", 73.0) == "1 min 13 s"
    assert quantity("peak_bytes", 1.5 * 2**30) == "1.5 GiB" and quantity("bytes", 12) == "12 B"
    assert quantity("flops", 2.4e13) == "24.0 TFLOP" and quantity("flops", 12.0) == "12 FLOP"
    assert quantity("ok", True) == "True" and quantity("tokens", 1500) == "1\u2009500"


def test_nested_records_become_labelled_rows():
    record = {
        "rows_read": 3,
        "dropped": {"too long": 1},
        "sources": [{"name": "a"}, {"name": "b"}],
        "tags": ["x", "y"],
        "no": None,
    }
    assert flatten(record) == [
        ("rows read", 3),
        ("dropped › too long", 1),
        ("sources 1 › name", "a"),
        ("sources 2 › name", "b"),
        ("tags", "x, y"),
        ("no", "none"),
    ]


def test_segments_join_to_the_text_itself():
    text = "say QX-17 or qx 17, \u202eabc\u202c \u200bwide \U0001f469\u200d\U0001f4bb\r\n\ttab"
    parts = segments(text, ["QX-17", ""])
    assert "".join(part.text for part in parts) == text
    assert [part.text for part in parts if part.kind == "mark"] == ["QX-17", "qx 17"]
    assert [part.label for part in parts if part.kind == "control"] == ["U+202E", "U+202C", "U+200B"]


def test_what_html_cannot_carry_is_replaced_and_named():
    parts = segments("a\x00b\ud800c")
    controls = [(part.text, part.label) for part in parts if part.kind == "control"]
    assert controls == [
        ("\ufffd", "U+0000"),
        ("\ufffd", "U+D800"),
    ]
    "".join(part.text for part in parts).encode("utf-8")
