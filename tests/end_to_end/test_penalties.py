"""Penalties as a user writes them: a tiny run of the toy world whose metrics, samples and report show what costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli.app import run_command
from tests.end_to_end.small import environment, folder, lines_of, prefopt
from tests.installed import install
from tests.tiny import save_tiny_base
from tests.unit.rewards.test_pretrained import decoder

pytestmark = pytest.mark.slow

RECIPE = """\
name: priced
model: {model_name_or_path: ./base, dtype: float32, lora: {lora_r: 4, lora_alpha: 8}}
data:
  pairs: {path: toy, name: preferences, max_samples: 24, eval_fraction: 0.4}
tracking:
  wandb: {project: proj, mode: offline}
stages:
  plain: &ppo
    kind: ppo
    prompts: pairs
    reward: gold
    total_episodes: 16
    rollout_batch_size: 8
    per_device_train_batch_size: 4
    num_ppo_epochs: 1
    max_new_tokens: 6
    logging_steps: 1
    save_steps: 1
  ppo:
    <<: *ppo
    reward:
      model: gold
      missing_eos_penalty: 0.0
      penalties:
        - {cost: length, limit: 3, weight: 0.5}
        - {cost: banned, lexicon: ./banned.txt, target_rate: 0.01, estimate: expected}
        - {cost: banned, name: patterns, patterns: ["[aeiou]"], weight: 0.1, warmup_episodes: 8}
        - {cost: missing_eos, weight: 1.0}
        - {cost: classifier, pretrained: ./rm, weight: 0.2}
        - {cost: plugin, function: shouting, target_mean: 0.5}
      total_clip: 5.0
  eval:
    kind: evaluate
    policies: [base, ppo]
    prompts: pairs
    reward: gold
    max_prompts: 6
    max_new_tokens: 6
    costs:
      - {cost: length, limit: 3}
      - {cost: banned, name: patterns, patterns: ["[aeiou]"]}
      - {cost: missing_eos}
    require: {"ppo:violation_rate/length": {max: 1.0}, "base:cost/patterns": {min: 0.0}}
"""
COST = """\
def cost(prompts, completions):
    return [(float(text.count("e")), [(text.index("e"), text.index("e") + 1)] if "e" in text else [])
            for text in completions]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, beside its recipe."""
    root = tmp_path_factory.mktemp("priced")
    save_tiny_base(root / "base")
    decoder(root / "rm", positions=1024)
    install(root / "site", {"shouting": COST}, group="prefopt.costs", function="cost")
    (root / "banned.txt").write_text("e\nthe  # a word that the tiny model says\n")
    (root / "recipe.yaml").write_text(RECIPE)
    done = prefopt("run", root / "recipe.yaml", "--out", root / "run", env=_environment(root), timeout=300)
    assert done.returncode == 0, done.stderr
    return root / "run"


def _environment(root: Path) -> dict[str, str]:
    env = environment()
    return {**env, "PYTHONPATH": f"{env['PYTHONPATH']}:{root / 'site'}"}


def test_metrics_have_every_rate_and_weight(run: Path) -> None:
    stage = folder(run, "ppo")
    assert stage is not None
    logged = [row for row in lines_of(stage / "metrics.jsonl") if "penalty/length/rate" in row and "summary" not in row]
    assert len(logged) == 2
    names = ("length", "banned", "patterns", "missing_eos", "classifier", "plugin")
    for row in logged:
        assert {f"penalty/{name}/{each}" for name in names for each in ("cost", "rate", "weight", "term")} <= row.keys()
        assert 0 <= row["penalty/banned/expected_rate"] <= 1
        assert row["penalty/length/weight"] == 0.5 and row["penalty/missing_eos/weight"] == 1
    assert [row["penalty/patterns/weight"] for row in logged] == pytest.approx([0.0, 0.1])
    assert logged[1]["penalty/banned/weight"] > logged[0]["penalty/banned/weight"] == 0


def test_samples_say_what_cost_what_and_raw_rewards_stay(run: Path) -> None:
    stage = folder(run, "ppo")
    assert stage is not None
    for row in lines_of(stage / "samples.jsonl"):
        assert set(row["costs"]) == {"length", "banned", "patterns", "missing_eos", "classifier", "plugin"}
        assert row["costs"]["missing_eos"] == float(not row["finished"])
        assert row["costs"]["length"] == pytest.approx(max(0, row["tokens"] - 3) / 3)
        text = row["completion"]
        vowels = "".join(text[start:end] for start, end in row["spans"].get("patterns", []))
        assert set(vowels) <= set("aeiou") and (row["costs"]["patterns"] == 1) == bool(vowels)
        assert row["costs"]["plugin"] == text.count("e")
        assert [text[start:end] for start, end in row["spans"].get("plugin", [])] == ["e"] * ("e" in text)
    for row in lines_of(stage / "microscope.jsonl"):
        assert {"score", "missing_eos", "length", "banned", "clip", "kl"} <= row["terms"].keys()


def test_the_evaluation_measures_violations_before_and_after(run: Path) -> None:
    stage = folder(run, "eval")
    assert stage is not None
    metrics = json.loads((stage / "metrics.json").read_text())
    for policy in ("base", "ppo"):
        for name in ("length", "patterns", "missing_eos"):
            low, mean, high = (
                metrics[f"{policy}:violation_rate/{name}/{part}"] for part in ("ci_low", "mean", "ci_high")
            )
            assert 0 <= low <= mean <= high <= 1 and low < high
        assert f"{policy}:cost/length/mean" in metrics
    answers = lines_of(stage / "samples.jsonl")
    share = sum(row["costs"]["length"] > 0 for row in answers if row["policy"] == "ppo") / 6
    assert metrics["ppo:violation_rate/length/mean"] == pytest.approx(share)
    assert "violates length" in json.loads((stage / "table.json").read_text())["columns"]


def test_the_report_shows_rates_weights_and_marks(run: Path) -> None:
    page = (run / "report" / "index.html").read_text()
    for text in ("Violations and costs", "What it is penalised for", 'title="patterns', "length: violations"):
        assert text in page
    drawn = {path.stem for path in (run / "report" / "plots").glob("*penalty-*")}
    assert drawn == {f"ppo-penalty-{name}" for name in ("rate", "cost", "weight", "term")}
    assert "target of plugin (0.5)" in page


def test_the_report_plots_reward_against_every_cost_of_the_evaluation(run: Path) -> None:
    stage = folder(run, "eval")
    assert stage is not None
    metrics = json.loads((stage / "metrics.json").read_text())
    page = (run / "report" / "index.html").read_text()
    for name in ("length", "missing_eos", "patterns"):
        assert f"Reward against violations: {name}" in page
        assert (run / "report" / "plots" / f"eval-tradeoff-{name}.png").is_file()
        before, after = (
            f"{policy}: {metrics[f'{policy}:violation_rate/{name}/mean']:.1%} [" for policy in ("base", "ppo")
        )
        assert f"<desc>Before, {before}" in page and f" {after}" in page
    assert "before: base" in page and "tradeoff-banned" not in page
    assert not list((run / "report" / "plots").glob("ppo-tradeoff-*"))


@pytest.mark.parametrize("stage", ["ppo", "eval"])
def test_the_table_of_the_tracker_says_in_words_what_costs(run: Path, stage: str) -> None:
    directory = folder(run, stage)
    assert directory is not None
    (path,) = (directory / "wandb").rglob("*.table.json")
    table = json.loads(path.read_text())
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert shown and "spans" not in table["columns"]
    samples = {row["completion"]: row for row in lines_of(directory / "samples.jsonl")}
    for row in shown:
        sample = samples[row["completion"]]
        for name, spans in sample["spans"].items():
            first = sample["completion"][slice(*spans[0])]
            quoted = f'"{first}"' if first.isalnum() else '"'  # what is not printable is written out
            assert f"{name}: {quoted}" in row["flagged"]
        silent = [name for name, cost in sample["costs"].items() if cost and name not in sample["spans"]]
        assert all(f"{name} (" in row["flagged"] for name in silent)


def test_again_nothing_runs_and_a_changed_word_list_or_cost_runs_the_stage(run: Path, capsys) -> None:
    root, before = run.parent, folder(run, "ppo")
    line = ("run", root / "recipe.yaml", "--out", run)
    assert prefopt(*line, env=_environment(root)).returncode == 0 and folder(run, "ppo") == before
    plain = folder(run, "plain")
    (root / "banned.txt").write_text("e\n")
    planned = prefopt(*line, "--dry-run", env=_environment(root))
    assert planned.returncode == 0
    assert "changed: reward.penalties.banned.lexicon" in " ".join(planned.stdout.split())
    stages = {row.split()[0]: row for row in planned.stdout.splitlines() if row.split()[:1]}
    assert "done" in stages["plain"] and "would run" in stages["ppo"] and "would run" in stages["eval"]
    assert folder(run, "plain") == plain
    assert run_command(["check", str(root / "recipe.yaml")]) == 2  # the plug-in is not installed here
    assert "no installed package registers a cost 'shouting'" in capsys.readouterr().err
