"""The benchmark against TRL, without its clock: what it plans, keeps, concludes and writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.pipeline.loading import DEFAULT_ENVIRONMENT
from tests.benchmarks import training
from tests.benchmarks.against_trl import page, plan
from tests.benchmarks.against_trl.ledger import Ledger, read_result
from tests.benchmarks.against_trl.peers import MODEL, PEER, ROOT, peers_folder
from tests.benchmarks.against_trl.plan import EQUAL_MALLOC, PREFOPT, TRL, Case, Settings
from tests.benchmarks.against_trl.prefopt_side import arguments
from tests.benchmarks.against_trl.summary import compare, disagreements, limit_share, loss_gap

COMMAND = ["-m", "side", "dpo"]
SPEEDS = {PREFOPT: [3.0, 4.0, 3.6], TRL: [2.0, 2.0, 1.0], "TRL, precomputed": [1.0, 1.8, 1.9]}


def case(part: str = "training", rounds: int = 3) -> Case:
    return Case(part, "dpo", None, 8, 2, 64, rounds, plan.DPO_SIDES)


def results(of: Case, last_loss: float = 0.5) -> dict[str, dict[str, Any]]:
    """What every process of a case could have said."""
    found: dict[str, dict[str, Any]] = {f"{of.name}/flops": {"flops_per_pair": 5e9}}
    for turn in range(of.rounds + 1):
        rate = {"flops_per_second": (40 + turn) * 1e9, "threads": 2, "device": "cpu"}
        found[f"{of.name}/matmul/{turn}"] = rate
    for side, speeds in SPEEDS.items():
        for turn in range(of.rounds):
            result = {"pairs": 8, "pairs_per_second": speeds[turn], "peak_bytes": int(2**20 * 100 * speeds[turn])}
            found[f"{of.name}/{side}/{turn + 1}"] = result | {"first_loss": 0.7, "last_loss": last_loss}
    return found


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "peers"
    folder.mkdir()
    for name in (MODEL, PEER):
        (folder / name).write_text("raise SystemExit('not to be run')\n")
    monkeypatch.setenv("PREFOPT_BENCH", str(folder))
    return folder


# -- the file of results -----------------------------------------------------------------------------------------------


def test_a_stopped_benchmark_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "bench" / "results.jsonl"
    Ledger(file, "now").add("one", COMMAND, {"pairs": 1})
    with open(file, "a") as half:
        half.write('{"key": "two", "sta')
    ledger = Ledger(file, "now")
    ledger.add("two", COMMAND, {"pairs": 2})
    found = [Ledger(file, "now").find(key, COMMAND) for key in ("one", "two")]
    assert [row and row["result"] for row in found] == [{"pairs": 1}, {"pairs": 2}]
    assert len(file.read_text().splitlines()) == 2


def test_results_of_other_code_or_sizes_are_kept_and_not_used(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Ledger(file, "before").add("one", COMMAND, {"pairs": 1})
    ledger = Ledger(file, "now")
    assert ledger.find("one", COMMAND) is None
    ledger.add("one", COMMAND, {"pairs": 2})
    assert ledger.find("one", [*COMMAND, "--pairs", "8"]) is None
    row = Ledger(file, "before").find("one", COMMAND)
    assert row is not None and row["result"] == {"pairs": 1}


def test_a_fresh_benchmark_forgets(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Ledger(file, "now").add("one", COMMAND, {"pairs": 1})
    assert Ledger(file, "now", fresh=True).find("one", COMMAND) is None
    assert file.read_text() == ""


def test_lines_of_a_side_are_read_among_what_trainers_print() -> None:
    printed = "{'loss': '0.69', 'epoch': '1'}\n{\"pairs\": 8, \"seconds\": 3.0}\nbye\n{\"reference_seconds\": 4.0, "
    assert read_result(printed + '"reference_share": 0.25}\n')["pairs_per_second"] == 8 / (3 + 4 * 0.25)
    assert read_result(printed.splitlines()[1])["pairs_per_second"] == 8 / 3
    with pytest.raises(ValueError, match="no JSON line"):
        read_result("{'loss': '0.69'}\n")


# -- medians, ratios, the limit ----------------------------------------------------------------------------------------


def test_prefopt_is_compared_with_the_variant_that_has_the_best_median() -> None:
    speed = compare(case(), results(case()), "pairs_per_second", more_is_better=True)
    assert speed.sides[PREFOPT] == (3.6, 3.0, 4.0) and speed.best == TRL
    assert speed.ratio == (3.6 / 2.0, 3.0 / 2.0, 3.6 / 1.0)
    memory = compare(case(), results(case()), "peak_bytes", more_is_better=False)
    assert memory.best == "TRL, precomputed"
    assert memory.ratio is not None and memory.ratio.median == pytest.approx(3.6 / 1.8)


def test_the_share_of_the_limit_is_operations_a_second_over_those_of_matrix_products() -> None:
    assert limit_share(case(), results(case())) == pytest.approx(5e9 * 3.6 / 41.5e9)


def test_a_side_without_memory_is_said_and_not_compared() -> None:
    found = results(case())
    found[f"{case().name}/TRL/2"] = {"failed": "out of memory"}
    assert compare(case(), found, "pairs_per_second", more_is_better=True).best == "TRL, precomputed"
    assert "out of memory" in page.markdown([case()], found, "a machine")
    for key in found:
        if f"/{PREFOPT}/" in key or key.endswith("flops"):
            found[key] = {"failed": "out of memory"}
    assert compare(case(), found, "pairs_per_second", more_is_better=True).ratio is None
    assert limit_share(case(), found) is None and loss_gap(case(), found) is None
    page.markdown([case()], found, "a machine")


def test_sides_that_did_other_work_are_found() -> None:
    found = results(case())
    assert disagreements([case()], found) == []
    found[f"{case().name}/TRL/1"]["last_loss"] = 0.5 * 1.002
    found[f"{case().name}/TRL/3"]["pairs"] = 6
    said = disagreements([case()], found)
    assert ["losses" in said[0], "numbers of pairs: [6, 8]" in said[1]] == [True, True]


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_sides_take_turns_between_matrix_products() -> None:
    keys = [step.key.removeprefix(f"{case().name}/") for step in plan.measurements(case(rounds=2), Path("bench"))]
    turn = ["prefopt/{0}", "TRL/{0}", "TRL, precomputed/{0}", "matmul/{0}"]
    assert keys == ["matmul/0", *(key.format(n) for n in (1, 2) for key in turn), "flops"]


@pytest.mark.parametrize("cuda", [False, True])
def test_both_sides_get_the_same_words_and_environment(cuda: bool) -> None:
    found = plan.cases(Settings(cuda=cuda, tokens=(1024, 2048)))
    for each in found:
        steps = plan.measurements(each, Path("bench"))
        words = plan.training_words(each, Path("bench"))
        sides = [step for step in steps if step.module.endswith("_side")]
        mine = [step for step in sides if step.module == "prefopt_side"]
        assert all(any(step.words[at:][: len(words)] == words for at in range(6)) for step in sides)
        assert {arguments().parse_args(step.words).bf16 for step in mine} == {cuda}
        memory = EQUAL_MALLOC if each.part == "memory" else {}
        for step in sides:  # ours waits for threads as a stage does, theirs as torch does
            own = DEFAULT_ENVIRONMENT if step in mine and not step.key.endswith("flops") else {}
            assert step.environment == {**own, **memory}
        # The reference of TRL's rows is timed where it is not computed in the steps.
        assert all("--start" in step.words for step in sides if "--precompute" in step.words)
    assert {step.part for step in found} == ({"cuda"} if cuda else {"training", "memory"})


def test_the_dry_run_for_a_device_prints_what_it_would_run(peers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training.main(["--cuda", "--dry-run", "--rounds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for tokens in (1024, 2048, 4096):
        own = [line for line in lines if f"--max-length {tokens} " in line]
        assert sum(".prefopt_side" in line for line in own) == 2 * (2 + 1)  # methods, rounds, operations
        assert sum(".trl_side" in line and "--record" not in line for line in own) == (3 + 2) * 2
        assert all("--bf16" in line and f"qwen2-0.5b-{tokens}" in line for line in own)
    assert not list(peers.parent.glob("bench*"))


def test_what_is_missing_of_the_peers_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], peers: Path
) -> None:
    assert peers_folder() == peers
    (peers / PEER).unlink()
    with pytest.raises(SystemExit) as ended:
        training.main(["--dry-run"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"PREFOPT_BENCH is {peers}" in said
    assert "missing: peer_trl.py." in said
    monkeypatch.delenv("PREFOPT_BENCH")
    with pytest.raises(SystemExit):
        peers_folder(tmp_path / "project")
    said = capsys.readouterr().err
    assert "make_model.py and peer_trl.py" in said and str(tmp_path / "shared" / "bench") in said


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_block_is_replaced_by_its_marker_alone(tmp_path: Path) -> None:
    text = "<!-- measured: a -->\nold\n<!-- /measured -->\n<!-- measured: b -->\nkept\n<!-- /measured -->\n"
    (tmp_path / "page.md").write_text(text)
    page.replace_marked(tmp_path / "page.md", "a", r"new \1")
    assert (tmp_path / "page.md").read_text() == text.replace("old", r"new \1")
    with pytest.raises(ValueError, match="0 blocks"):
        page.replace_marked(tmp_path / "page.md", "c", "new")


def test_numbers_of_the_other_device_stay(tmp_path: Path) -> None:
    for device in ("cpu", "cuda", "cpu"):
        page.update_json(tmp_path / "all.json", device, {"of": device})
    assert json.loads((tmp_path / "all.json").read_text()) == {"cpu": {"of": "cpu"}, "cuda": {"of": "cuda"}}


def synthetic(step: plan.Measurement, of: Case) -> dict[str, Any]:
    """A result of a plan's process, as `results` has them for every case."""
    return results(Case(of.part, of.method, of.shape, 8, 2, of.max_length, 3, plan.DPO_SIDES))[step.key]


@pytest.mark.slow
def test_a_half_finished_benchmark_measures_what_is_missing_and_writes_all(peers: Path, tmp_path: Path) -> None:
    """Everything but one rate of matrix products is in the file, so no process is started but that one."""
    words = ["--rounds", "2", "--pairs", "8", "--batch", "2", "--docs", str(tmp_path)]
    a = training.arguments().parse_args([*words, "--results", str(tmp_path / "results.jsonl")])
    of_data, state = training.states(peers, training.about())
    ledger, missing = Ledger(a.results, state), "training/dpo/1024/matmul/1"
    for each in plan.cases(training.settings_of(a)):
        for step in plan.measurements(each, tmp_path / of_data):
            if step.key != missing:
                ledger.add(step.key, step.command, synthetic(step, each))
        (tmp_path / of_data / each.data / "model").mkdir(parents=True, exist_ok=True)
        (tmp_path / of_data / each.start).mkdir()
        config = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 32}
        (tmp_path / of_data / each.data / "model" / "config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / "docs" / "benchmarks.md", tmp_path)
    before = a.results.read_text()
    assert training.main([*words, "--results", str(a.results)]) == 0
    added = [json.loads(line) for line in a.results.read_text().removeprefix(before).splitlines()]
    assert [row["key"] for row in added] == [missing]
    assert added[0]["result"]["rates"].keys() == {"2048 x 8 x 8", "2048 x 8 x 16", "2048 x 16 x 8", "2048 x 8 x 32"}
    told = (tmp_path / "benchmarks.md").read_text()
    assert "| DPO | 1,024 | 3.5 (3–4) | **2 (2–2)** | 1.4 (1–1.8) | 1.75 (1.50–2.00) | 5 |" in told
    assert "| DPO | 1,024 | 350 (300–400) | 200 (200–200) | **140 (100–180)** | 2.50 (2.22–3.00) |" in told
    content = json.loads((tmp_path / "benchmarks.json").read_text())["cpu"]
    assert len(content["measurements"]) == len(before.splitlines()) + 1
    assert content["versions"].keys() == set(training.LIBRARIES) and content["hardware"]["threads"] == 2
    assert content["summary"]["training/dpo/1024"]["pairs_per_second"]["ratio"]["median"] == 1.75
    assert str(tmp_path) not in json.dumps(content)


def test_the_page_has_the_blocks_that_are_written() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(text.count(f"<!-- measured: {marker} -->") == 1 for marker in (page.CPU, page.CUDA))
