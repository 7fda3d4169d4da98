"""Gates, costs, seeds and findings: what is there is shown, what is damaged is said."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import prefopt.report
import prefopt.tracking
from prefopt.report import render
from prefopt.report.costs import costs_of
from prefopt.report.evaluation import verdict, verdicts
from prefopt.report.evidence_plots import law_at
from prefopt.report.findings import MOST_ROWS, Cell, Law, read_evidence, split
from prefopt.report.rundata import read_run
from tests.run_folder import FULL, HOSTILE, RECIPE, RunFolder, curves
from tests.unit.report.test_render import Page


def page_of(root):
    return Page(render(root).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return RunFolder(tmp_path_factory.mktemp("full") / "toy", recipe=FULL).full()


@pytest.fixture
def evaluated(tmp_path):
    folder = RunFolder(tmp_path / "run", recipe=FULL)
    folder.evaluate(prompts=5)
    return folder


def test_the_page_has_the_new_parts_in_their_order(full):
    page = page_of(full)
    order = [part for part in page.ids if part in ("seeds", "evaluation", "evidence", "stages", "cost", "samples")]
    assert order == ["seeds", "evaluation", "evidence", "stages", "cost", "samples"]
    assert "Over 3 seeds" in page.text and "What it cost" in page.text and "warnings" not in page.ids
    names = {path.name for path in (full / "report" / "plots").iterdir()}
    assert {"eval-reliability.png", "eval-best-of-n.png", "eval-distance.png"} <= names
    assert len(page.ids) == len(set(page.ids))


def test_the_same_folder_gives_the_same_bytes(full, tmp_path):
    text = render(full).read_bytes()
    plots = {path.name: path.read_bytes() for path in (full / "report" / "plots").iterdir()}
    copy = tmp_path / "elsewhere"
    shutil.copytree(full, copy)
    assert render(copy).read_bytes() == text
    assert {path.name: path.read_bytes() for path in (copy / "report" / "plots").iterdir()} == plots


def test_nothing_new_is_shown_where_nothing_is_there(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.metrics("base", steps=20)
    page = page_of(folder.run.root)
    assert not {"seeds", "evidence", "cost", "warnings"} & set(page.ids)


# ---- findings --------------------------------------------------------------------------------------------------------


def test_numbers_of_a_table_are_told_from_texts(full):
    (table,) = next(stage for stage in read_run(full).stages if stage.name == "eval").evidence.tables
    assert table.numeric == (False, True, True)
    assert table.rows[0] == (Cell("typos"), Cell("279"), Cell("13.1%", "[9.0%, 18.6%]"))
    assert table.rows[2] == (Cell("order"), Cell("–"), Cell("–"))


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("0.67 [0.52, 0.81]", Cell("0.67", "[0.52, 0.81]")),
        ("-25.1% [-30.5%, -19.7%]", Cell("-25.1%", "[-30.5%, -19.7%]")),
        ("1e-5", Cell("1e-5")),
        ("1 shorter", Cell("1 shorter")),
        ("", Cell("")),
    ],
)
def test_a_number_and_its_interval(text, cell):
    assert split(text) == cell


def test_hostile_findings_and_seeds_stay_text(tmp_path):
    page = page_of(RunFolder(tmp_path / "run", recipe=FULL, hostile=True).full(prompts=len(HOSTILE)))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "object"} and [tag for tag, _ in page.elements].count("svg") == 11
    assert all(text in page.text for text in HOSTILE[:4])
    assert f"{HOSTILE[0]} beats sft by 0.34" in page.text
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "findings.json cannot be read"),
        ("[1]", "findings.json is not a JSON object"),
        ('{"tables": 3}', "tables is damaged: 3 is not a list"),
        ('{"tables": [{"rows": []}]}', "table 1 is damaged: 'columns' is missing"),
        ('{"tables": [{"columns": ["a"], "rows": [["1", "2"]]}]}', "a row has 2 cells for 1 columns"),
        ('{"curves": ["x"]}', "curves is damaged: ['x'] is not a mapping"),
        ('{"curves": {"best_of_n": [{"n": 1}]}}', "the curve best_of_n is damaged: 'kl' is missing"),
        ('{"curves": {"best_of_n": [{"n": 1, "kl": -1}]}}', "-1.0 is below 0"),
        ('{"curves": {"overoptimisation": [{"policy": "a", "distance": 1e999}]}}', "inf is not a number"),
        ('{"curves": {"reliability_after": [{"size": true}]}}', "True is not a number"),
        ('{"curves": {"best_of_n_law_chosen_by_proxy": {"alpha": "1"}}}', "'1' is not a number"),
        ('{"curves": {"reliability_before": [{"size": 1' + "0" * 500 + "}]}}", "a number that is too large"),
    ],
)
def test_damaged_findings_are_warned_about(evaluated, change, said):
    (evaluated.folder("eval") / "findings.json").write_text(change)
    page = page_of(evaluated.run.root)
    assert said in page.text and "stage eval: " in page.text
    assert "dpo beats sft" in page.text and "evidence" not in page.ids


def test_what_is_not_damaged_is_shown(evaluated):
    path = evaluated.findings()
    found = json.loads(path.read_text())
    found["curves"]["best_of_n"][2] = 7
    found["tables"].insert(0, None)
    path.write_text(json.dumps(found))
    page = page_of(evaluated.run.root)
    assert "the curve best_of_n is damaged: 7 is not a mapping" in page.text
    assert "table 1 is damaged: None is not a mapping" in page.text
    assert "Robustness of the scorer" in page.text and "Does it know when it is right?" in page.text
    assert "Take n answers of the baseline" not in page.text


@pytest.mark.parametrize(
    "odd",
    [
        {"best_of_n": curves()["best_of_n"][1:]},  # no n = 1 for the law to start from
        {"best_of_n": [{"n": n, "kl": 0.0} for n in (1, 2)]},
        {"overoptimisation": curves()["overoptimisation"][1:]},  # no baseline
        {"overoptimisation": [{**point, "distance": 0, "proxy": None} for point in curves()["overoptimisation"]]},
        {"reliability_before": [], "reliability_after": [{"size": 0, "confidence": 0.5, "accuracy": 0.5}]},
        {"best_of_n_law_chosen_by_reward": {"alpha": 1e29, "beta": -1e29, "peak": None, "r_squared": -1e29}},
    ],
)
def test_odd_curves_do_not_stop_the_report(evaluated, odd):
    found = {"curves": curves() | odd}
    (evaluated.folder("eval") / "findings.json").write_text(json.dumps(found))
    assert "warnings" not in page_of(evaluated.run.root).ids


def test_a_huge_table_is_cut(tmp_path):
    rows = [[str(i)] for i in range(MOST_ROWS + 5)]
    (tmp_path / "findings.json").write_text(json.dumps({"tables": [{"columns": ["a"], "rows": rows}]}))
    (table,) = read_evidence(tmp_path, pytest.fail).tables
    assert len(table.rows) == MOST_ROWS and table.left_out == 5


def test_the_law_starts_where_choosing_starts():
    law = Law(alpha=1.5, beta=0.5, peak=1.5, r_squared=1.0)
    assert law_at(law, 0.9, 0.0) == 0.9 and law_at(law, 0.9, 2.0) == pytest.approx(0.9 + 2 * (1.5 - 0.5 * 2))


# ---- gates -----------------------------------------------------------------------------------------------------------


def gates_of(folder, name="eval"):
    run = read_run(folder.run.root)
    return next(stage for stage in run.stages if stage.name == name).gates, run


def test_a_failed_gate_leads_the_page(evaluated):
    gates, run = gates_of(evaluated)
    assert [(gate.metric, gate.holds) for gate in gates] == [
        ("dpo:win_rate", True),
        ("dpo:win_rate", False),
        ("dpo:kl", True),
    ]
    text = "Gate of eval says no: dpo:win_rate is 0.7 [0.65, 0.75], and its interval must lie above 0.66"
    assert (verdict(run).text, verdict(run).tone) == (text, "bad")
    assert [found.tone for found in verdicts(run)] == ["bad", "good"]
    page = page_of(evaluated.run.root)
    assert page.text.count("✓") == 2 and page.text.count("✗") == 1 and "must be at most 5" in page.text


def test_a_gate_that_holds_does_not(tmp_path):
    folder = RunFolder(tmp_path / "run", recipe=FULL.replace("0.66", "0.64"))
    folder.evaluate(prompts=5)
    assert verdict(read_run(folder.run.root)).text.startswith("dpo beats sft")


def test_a_gate_of_a_stage_that_is_not_done_is_not_judged(evaluated):
    gates, _ = gates_of(evaluated, "sft")
    assert gates == ()  # not started
    evaluated.metrics("sft")
    ((gate,), run) = gates_of(evaluated, "sft")
    assert gate.holds is None and gate.bound == "judged when the stage is done"
    assert run.warnings == ()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("3", "require is damaged: 3 is not a mapping"),
        ("{'dpo:win_rate': {least: 1}}", "the gate on dpo:win_rate is damaged"),
        ("{'dpo:win_rate': {}}", "write at least one of"),
        ("{'dpo:gain': {min: 1}}", "the stage did not measure 'dpo:gain'"),
        ("{'bare': {min: 1}}", "the gate on bare is damaged: 'bare/ci_low' is missing"),
    ],
)
def test_damaged_gates_are_warned_about(tmp_path, block, said):
    recipe = RECIPE.replace("reward: gold,", f"reward: gold, require: {block},")
    folder = RunFolder(tmp_path / "run", recipe=recipe)
    folder.commit("eval", {"dpo:win_rate/mean": 0.6, "bare/mean": 1.0}, {"baseline": "sft"}, [])
    page = page_of(folder.run.root)
    assert said in page.text
    assert ("cannot be judged" in page.text) == (block != "3")


# ---- costs -----------------------------------------------------------------------------------------------------------


def test_costs_add_up(full):
    table = costs_of(read_run(full))
    assert table.columns == ("time", "tokens", "compute", "host memory", "money")
    assert [stage for stage, _ in table.rows] == ["base", "sft", "dpo", "eval"]
    assert table.rows[0][1] == ("1 min 13 s", "183\u2009500", "24.0 TFLOP", "1.2 GiB", "0.051 EUR")
    assert table.rows[3][1] == ("1 min 13 s", "–", "–", "1.2 GiB", "0.051 EUR")
    assert table.total == ("4 min 52 s", "550\u2009500", "72.0 TFLOP", "1.2 GiB", "0.203 EUR")
    assert "2.50 EUR an hour" in table.note


@pytest.mark.parametrize(
    ("price", "said"),
    [
        ("3", "price in recipe.yaml is damaged: 3 is not a mapping"),
        ("{currency: EUR}", "'per_hour' is missing"),
        ("{per_hour: cheap}", "'cheap' is not a number"),
        ("{per_hour: -1}", "per_hour is below 0"),
        ("{per_hour: .nan}", "nan is not a number"),
    ],
)
def test_a_damaged_price_is_warned_about(tmp_path, price, said):
    folder = RunFolder(tmp_path / "run", recipe=f"price: {price}\n{RECIPE}")
    folder.evaluate(prompts=3)
    page = page_of(folder.run.root)
    assert said in page.text and "What it cost" in page.text and "Money is" not in page.text


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_are_shown_with_their_verdicts(full):
    seeds = read_run(full).seeds
    assert (seeds.count, seeds.prompts, seeds.reference) == (3, 256, "sft")
    assert [title for title, _ in seeds.columns][3:] == ["minus sft", "p (Holm)", "win rate", "Elo"]
    assert [row.is_reference for row in seeds.rows] == [True, False, False]
    assert seeds.rows[0].cells[3:] == (Cell("–"), Cell("–"), Cell("–"), Cell("1\u2009000"))
    assert seeds.rows[1].cells == (
        Cell("1.29", "[1.17, 1.41]"),
        Cell("3"),
        Cell("0.90 to 1.10"),
        Cell("0.34", "[0.26, 0.42]"),
        Cell("< 0.001"),
        Cell("0.61", "[0.57, 0.65]"),
        Cell("1\u2009081", "[1\u2009061, 1\u2009101]"),
    )
    assert seeds.verdicts[0] == ("dpo beats sft by 0.34 [0.26, 0.42]", "good")
    assert seeds.verdicts[1] == ("No difference shown between ppo and sft: 0.07", "open")
    assert seeds.notes[0].startswith("3 prompts") and seeds.notes[1] == "seed 20 did not finish"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: "{", "seeds.json cannot be read"),
        (lambda found: found.pop("entries"), "seeds.json is damaged: 'entries' is missing"),
        (lambda found: found.update(entries=[]), ""),
        (lambda found: found["entries"][1].update(mean=None), "seeds.json: entry 2 is damaged"),
        (lambda found: found["entries"][1].update(seeds={}), "seeds.json: entry 2 is damaged: it has no seed"),
        (lambda found: found["entries"][2]["against"].pop("p_holm"), "entry 3 is damaged: 'p_holm' is missing"),
    ],
)
def test_damaged_seeds_are_warned_about(evaluated, change, said):
    path = evaluated.seeds()
    found = json.loads(path.read_text())
    text = change(found)
    path.write_text(text if isinstance(text, str) else json.dumps(found))
    page = page_of(evaluated.run.root)
    assert said in page.text and "dpo beats sft" in page.text
    assert ("entry" in said) == ("seeds" in page.ids)


def test_the_real_comparison_is_understood(tmp_path):
    from prefopt.evaluation.compare import Entry, compare

    scores = {"sft": 0.0, "dpo": 0.5, "ppo": 0.1}
    entries = [
        Entry(name, {seed: {f"p{i}": gain + (i * seed) % 7 / 7 for i in range(40)} for seed in (17, 18)})
        for name, gain in scores.items()
    ]
    found = compare(entries, resamples=200)
    root = RunFolder(tmp_path / "run").run.root
    (root / "seeds.json").write_text(json.dumps({**found.to_json(), "notes": []}))
    run = read_run(root)
    assert run.warnings == () and run.seeds.count == 2
    assert [text.casefold() for text, _ in run.seeds.verdicts] == [text.casefold() for text in found.verdicts]


# ---- work ------------------------------------------------------------------------------------------------------------


def lines_run(root):
    """Lines of the report's and the reader's own code that a report needs, after it was made once."""
    homes = tuple(str(Path(module.__file__).parent) for module in (prefopt.report, prefopt.tracking))
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(homes):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        render(root)
    finally:
        sys.settrace(before)
    return count


def test_twice_the_rows_are_no_more_than_twice_the_work(tmp_path):
    folder = RunFolder(tmp_path / "run")
    path = folder.folder("dpo") / "metrics.jsonl"
    counts, sizes = [], []
    for rows in (500, 500, 1000, 2000, 4000):
        lines = (f'{{"step": {i}, "train/loss": {1 / i}, "dpo/margin": {i % 7}}}\n' for i in range(1, rows + 1))
        path.write_text("".join(lines))
        counts.append(lines_run(folder.run.root))
        sizes.append((folder.run.root / "report" / "index.html").stat().st_size)
    _, first, second, third, fourth = counts  # the very first also loads the template
    per_row = [(second - first) / 500, (third - second) / 1000, (fourth - third) / 2000]
    assert max(per_row) < 1.1 * min(per_row)
    assert max(per_row) < 60
    assert sizes[-1] < 1.1 * sizes[0]  # what is drawn does not grow
