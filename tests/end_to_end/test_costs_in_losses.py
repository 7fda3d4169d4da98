"""Costs in losses, in groups and in labels as a user writes them: a tiny run of the toy world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli.app import run_command
from tests.end_to_end.small import folder, lines_of, prefopt
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow

RECIPE = """\
name: costly
model: {model_name_or_path: ./base, dtype: float32, lora: {lora_r: 4, lora_alpha: 8}}
data:
  pairs: {path: toy, name: preferences, max_samples: 48, eval_fraction: 0.3}
stages:
  plain: &sft
    kind: sft
    data: pairs
    max_steps: 2
    per_device_train_batch_size: 4
    logging_steps: 1
    save_steps: 2
  sft:
    <<: *sft
    unlikelihood:
      - {cost: banned, lexicon: ./banned.txt}
      - {cost: length, limit: 60, weight: 0.5}
    sequence_unlikelihood:
      costs: [{cost: banned, patterns: ["[aeiou]"]}, {cost: repetition, ngram: 2, weight: 0.5}]
      every: 1
      max_new_tokens: 8
    focal_gamma: 1.0
    group_weights: effective_number
    group_by: violates
    group_costs: [{cost: banned, patterns: ["the"]}]
  own:
    kind: collect
    policies: sft
    prompts: pairs
    judge: gold
    max_new_tokens: 6
    costs:
      - {cost: banned, patterns: ["[aeiou]"], weight: 0.5}
      - {cost: missing_eos, threshold: 1.0}
    on_violation: drop
  rm:
    <<: *sft
    kind: reward
    group_weights: inverse
    group_by: source
  dpo:
    <<: *sft
    kind: dpo
    init: sft
    cost_margin: [{cost: length, limit: 40}]
    unlikelihood: [{cost: banned, patterns: ["the"]}]
    sequence_unlikelihood:
      costs: [{cost: banned, lexicon: ./own.txt}, {cost: repetition, ngram: 2}]
      max_new_tokens: 8
    violations: [{cost: banned, lexicon: ./banned.txt}]
    on_violation: relabel
    group_weights: inverse
    group_by: longer
    focal_gamma: 1.0
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, beside its recipe."""
    root = tmp_path_factory.mktemp("costly")
    save_tiny_base(root / "base")
    (root / "banned.txt").write_text("the\nyes\n")
    (root / "own.txt").write_text("lamp\n")
    (root / "recipe.yaml").write_text(RECIPE)
    done = prefopt("run", root / "recipe.yaml", "--out", root / "run", timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return root / "run"


def details(run: Path, stage: str) -> dict:
    where = folder(run, stage)
    assert where is not None
    return json.loads((where / "manifest.json").read_text())["details"]


def test_sft_counts_what_it_flags_and_groups(run: Path) -> None:
    found = details(run, "sft")
    assert found["flagged"]["train"]["violating"]["banned"] > 0 and found["flagged"]["train"]["flagged_tokens"] > 0
    assert set(found["groups"]) <= {"yes", "no"} and "flagged" not in details(run, "plain")
    stage = folder(run, "sft")
    assert stage is not None
    logged = [row for row in lines_of(stage / "metrics.jsonl") if "sft/flagged_probability" in row]
    assert logged and all(0 < row["sft/flagged_probability"] < 1 for row in logged)


def test_dpo_counts_every_pair_once(run: Path) -> None:
    found = details(run, "dpo")["costs"]
    counts = dict(found["violations"])
    assert counts.pop("pairs") == sum(counts.values()) and found["flagged_train"]["violating"]["banned"] > 0
    stage = folder(run, "dpo")
    assert stage is not None
    logged = [row for row in lines_of(stage / "metrics.jsonl") if "dpo/cost_margin" in row]
    assert logged and all(row["dpo/unlikelihood"] >= 0 for row in logged)
    assert sum(each["rows"] for each in details(run, "rm")["groups"].values()) > 0


@pytest.mark.parametrize(("stage", "steps"), [("sft", [1, 2]), ("dpo", [1])])
def test_what_the_policy_says_itself_is_flagged(run: Path, stage: str, steps: list[int]) -> None:
    where = folder(run, stage)
    assert where is not None
    logged = [row for row in lines_of(where / "metrics.jsonl") if "sequence_unlikelihood/loss" in row]
    assert [row["step"] for row in logged if "summary" not in row] == steps
    for row in logged:
        assert row["sequence_unlikelihood/loss"] > 0 and 0 < row["sequence_unlikelihood/flagged_share"] <= 1
        assert {0 <= row[f"sequence_unlikelihood/{name}/rate"] <= 1 for name in ("banned", "repetition")} == {True}
    plain = folder(run, "plain")
    assert plain is not None and "sequence_unlikelihood" not in (plain / "metrics.jsonl").read_text()


def test_collected_pairs_are_labelled_by_the_shaped_reward(run: Path) -> None:
    stage = folder(run, "own")
    assert stage is not None
    samples = lines_of(stage / "samples.jsonl")
    dropped = {(row["prompt"][-1]["content"], row["completion"]) for row in samples if row["costs"]["banned"] > 0}
    for row in samples:
        assert row["terms"]["score"] == row["reward"]
        assert sum(row["terms"].values()) == pytest.approx(row["shaped_reward"])
        assert (row["terms"]["banned"] < 0) == (row["costs"]["banned"] > 0) == ("banned" in row["spans"])
        assert row["costs"]["missing_eos"] == float(not row["finished"])
    pairs = lines_of(stage / "pairs.jsonl")
    assert pairs
    for pair in pairs:
        for side in ("chosen", "rejected"):
            assert (pair["prompt"][-1]["content"], pair[side]) not in dropped
    metrics = json.loads((stage / "metrics.json").read_text())
    share = sum(row["costs"]["banned"] > 0 for row in samples) / len(samples)
    assert metrics["collect/dropped_rate"] == pytest.approx(share) == pytest.approx(metrics["violation_rate/banned"])
    mean = sum(row["shaped_reward"] for row in samples) / len(samples)
    assert metrics["collect/shaped_reward"] == pytest.approx(mean)


def test_a_changed_word_list_of_own_answers_runs_the_stage_again(run: Path) -> None:
    root = run.parent
    (root / "own.txt").write_text("chair\n")
    planned = prefopt("run", root / "recipe.yaml", "--out", run, "--dry-run")
    (root / "own.txt").write_text("lamp\n")
    lines = [line for line in planned.stdout.splitlines() if line.startswith(("sft ", "dpo "))]
    assert "done" in lines[0] and "would run" in lines[1]
    assert "sequence_unlikelihood" in planned.stdout


def test_again_nothing_runs_and_a_changed_word_list_runs_what_reads_it(run: Path) -> None:
    root = run.parent
    assert run_command(["check", str(root / "recipe.yaml")]) == 0
    (root / "banned.txt").write_text("the\n")
    planned = prefopt("run", root / "recipe.yaml", "--out", run, "--dry-run")
    stages: dict[str, str] = {}
    for line in planned.stdout.splitlines():
        stages.setdefault(line.partition(" ")[0], line)
    assert "done" in stages["plain"] and "done" in stages["rm"]
    assert "would run" in stages["sft"] and "would run" in stages["dpo"]
    assert "unlikelihood.banned.lexicon" in " ".join(planned.stdout.split())
