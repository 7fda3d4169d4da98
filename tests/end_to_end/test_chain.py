"""The middle of the chain as a user sees it: pairs and their ledger, the reward model, ppo, rounds, and wandb."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from prefopt.data.load import load_pairs, load_prompts
from prefopt.data.splits import prompt_key
from prefopt.recipe.load import load
from prefopt.recipe.schema import DataSpec
from prefopt.store import manifest as manifests
from prefopt.tracking.metrics import describe
from tests.end_to_end.small import STAGES, STEPS_PER_ROLLOUT, Finished, Warm, copy_run, folder, results, states, words
from tests.wandb_file import OfflineRun

pytestmark = pytest.mark.slow


def lines(out: Path, stage: str, name: str) -> list[dict[str, object]]:
    directory = folder(out, stage)
    assert directory is not None
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def rows_of(out: Path, table: str) -> int:
    ledger = sqlite3.connect(out / "ledger" / "ledger.sqlite3")
    count = ledger.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
    ledger.close()
    return int(count)


def test_pairs_of_held_out_prompts_are_the_held_out_pairs(quickstart: Finished) -> None:
    recipe = load(quickstart.out / "recipe.yaml").recipe
    prompts = load_prompts(("prompts",), recipe.data, recipe.seed)
    held_out = {prompt_key(prompt) for prompt in prompts.eval}
    directory = folder(quickstart.out, "pairs")
    assert directory is not None and held_out
    fraction = recipe.data["prompts"].eval_fraction
    spec = DataSpec(path=str(directory / "pairs.jsonl"), format="preference", eval_fraction=fraction)
    pairs = load_pairs(("pairs",), {**recipe.data, "pairs": spec}, recipe.seed)
    assert pairs.train and pairs.eval
    assert {prompt_key(pair.prompt) for pair in pairs.eval} <= held_out
    assert not {prompt_key(pair.prompt) for pair in pairs.train} & held_out
    for stage in ("reward", "dpo"):
        trained = folder(quickstart.out, stage)
        assert trained is not None
        account = manifests.verify(trained, full=True).details["data"]
        assert (account["kept_train"], account["kept_eval"]) == (len(pairs.train), len(pairs.eval))


def test_a_pair_says_where_it_comes_from(quickstart: Finished) -> None:
    sampled = {row["completion"]: row["reward"] for row in lines(quickstart.out, "pairs", "samples.jsonl")}
    pairs = lines(quickstart.out, "pairs", "pairs.jsonl")
    assert pairs and len({row["id"] for row in pairs}) == len(pairs)
    for row in pairs:
        assert row["annotator"] == "gold" and row["policy_chosen"] == row["policy_rejected"] == "sft"
        assert row["chosen"] in sampled and row["rejected"] in sampled and row["chosen"] != row["rejected"]
        assert row["probability"] == 1.0 and row["reward_chosen"] != row["reward_rejected"]


def test_what_is_in_the_ledger_is_neither_sampled_nor_judged_again(quickstart: Finished, out: Path, warm: Warm) -> None:
    copy_run(quickstart.out, out, without=("pairs", "reward", "dpo", "ppo", "eval"))
    before = {table: rows_of(out, table) for table in ("samples", "scores", "judgements")}
    assert before["samples"] == 60 * 2 and before["judgements"] == len(lines(quickstart.out, "pairs", "pairs.jsonl"))
    again = warm.run(words(out, "--only", "pairs"))
    assert again.returncode == 0, again.stderr
    assert "gold scores" not in again.stderr
    assert {table: rows_of(out, table) for table in before} == before
    assert lines(out, "pairs", "pairs.jsonl") == lines(quickstart.out, "pairs", "pairs.jsonl")
    more = warm.run(words(out, "--only", "pairs", "--set", "stages.pairs.judge.noise=0.5"))
    assert more.returncode == 0, more.stderr
    after = {table: rows_of(out, table) for table in before}
    # Another judge of the same answers: nothing is sampled or scored anew, and every label is given anew.
    assert after["samples"] == before["samples"] and after["scores"] == before["scores"]
    assert after["judgements"] == 2 * before["judgements"]


def test_the_reward_model_is_measured_with_an_interval(quickstart: Finished) -> None:
    directory = folder(quickstart.out, "reward")
    assert directory is not None
    metrics = manifests.verify(directory, full=True).metrics
    scored = lines(quickstart.out, "reward", "scores.jsonl")
    right = sum(float(str(row["chosen"])) > float(str(row["rejected"])) for row in scored)
    assert metrics["reward/accuracy/mean"] == pytest.approx(right / len(scored))
    assert metrics["reward/accuracy/ci_low"] <= right / len(scored) <= metrics["reward/accuracy/ci_high"]
    assert metrics["reward/accuracy/ci_high"] - metrics["reward/accuracy/ci_low"] > 0.1
    config = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]


def test_ppo_leaves_an_adapter_and_its_last_rollout(quickstart: Finished) -> None:
    samples = lines(quickstart.out, "ppo", "samples.jsonl")
    assert len(samples) == 8 and all(isinstance(row["reward"], float) and row["prompt"] for row in samples)
    page = (quickstart.out / "report" / "index.html").read_text()
    assert "Distance from the reference" in page and "Reward of the rollouts" in page


def test_rounds_unroll_and_each_samples_from_the_policy_before(quickstart: Finished, out: Path, warm: Warm) -> None:
    copy_run(quickstart.out, out, without=("pairs", "reward", "dpo", "ppo", "eval"))
    rounds = ("--set", "rounds={count: 2, stages: [pairs, dpo], carry: {sft: dpo}}")
    done = warm.run(words(out, *rounds, "--only", "pairs@1", "--only", "dpo@1", "--only", "pairs@2", "--only", "dpo@2"))
    assert done.returncode == 0, done.stderr
    first, second = (lines(out, f"pairs@{n}", "samples.jsonl") for n in (1, 2))
    assert {row["policy"] for row in first} == {"sft"} and {row["policy"] for row in second} == {"dpo@1"}
    last = folder(out, "dpo@2")
    assert last is not None
    assert set(manifests.verify(last, full=True).inputs) == {"base", "dpo@1", "pairs@2"}


def test_wandb_gets_groups_job_types_numbers_and_tables_of_samples(quickstart: Finished, out: Path, warm: Warm) -> None:
    copy_run(quickstart.out, out, without=("pairs", "reward", "dpo", "ppo", "eval"))
    done = warm.run(words(out, "--set", "tracking={wandb: {project: proj, mode: offline}}"))
    assert done.returncode == 0, done.stderr
    assert states(done)["sft"] == "skipped" and results(out) == results(quickstart.out)
    for stage, kind in (
        ("pairs", "collect"),
        ("reward", "reward"),
        ("dpo", "dpo"),
        ("ppo", "ppo"),
        ("eval", "evaluate"),
    ):
        directory = folder(out, stage)
        assert directory is not None
        run = OfflineRun(directory)
        assert (run.run.run_group, run.run.job_type, run.run.display_name) == ("small", kind, stage)
        names = {name for row in run.history for name in row if not name.startswith("_")} | set(run.summary)
        names = {name for name in names if not name.startswith(("_", "samples")) and name != "step"}
        assert names and all(describe(name).meaning for name in names)
        if stage in ("pairs", "ppo", "eval"):
            [table] = run.path.parent.glob("files/media/table/samples_*.table.json")
            shown = json.loads(table.read_text())
            assert {"prompt", "completion", "reward"} <= set(shown["columns"]) and shown["data"]


def test_all_stages_are_named_in_the_recipes_order(quickstart: Finished) -> None:
    assert list(load(quickstart.out / "recipe.yaml").recipe.stages) == list(STAGES)


def test_a_gate_that_says_no_ends_with_exit_code_6_and_trains_nothing_anew(
    quickstart: Finished, warm: Warm, tmp_path: Path
) -> None:
    out = copy_run(quickstart.out, tmp_path / "gated")
    before = results(out)
    refused = warm.run(words(out, "--set", "stages.reward.require={reward/accuracy: {lower_bound: 0.99}}"))
    assert refused.returncode == 6, refused.stderr
    said = refused.stderr
    assert (
        "reward/accuracy is" in said and "must lie above 0.99" in said and "look at reward/accuracy on training" in said
    )
    assert results(out) == before
    status = json.loads(warm.run(["status", str(out), "--json"]).stdout)
    assert {stage["stage"]: stage["state"] for stage in status["stages"]}["reward"] == "refused"
    # What does not read the reward model is as it was, and the bound is all that has to change.
    assert warm.run(words(out, "--set", "stages.reward.require={reward/accuracy: {lower_bound: 0.0}}")).returncode == 0
    assert results(out) == before


def test_the_reward_model_is_examined_and_the_evaluation_has_its_curves(quickstart: Finished) -> None:
    for stage, titles, curves in (
        (
            "checks",
            ("Reward accuracy", "Calibration", "Robustness", "Answers that should not win"),
            ("reliability_after",),
        ),
        ("eval", ("Best of n", "Reward against distance"), ("best_of_n", "overoptimisation")),
    ):
        directory = folder(quickstart.out, stage)
        assert directory is not None
        found = json.loads((directory / "findings.json").read_text())
        assert all(any(table["title"].startswith(title) for table in found["tables"]) for title in titles)
        assert set(curves) <= found["curves"].keys()
        assert all(describe(name).meaning for name in manifests.verify(directory, full=True).metrics)


def test_every_stage_says_what_it_cost(quickstart: Finished) -> None:
    for stage in STAGES:
        directory = folder(quickstart.out, stage)
        assert directory is not None
        cost = manifests.verify(directory, full=True).cost
        assert cost["wall_seconds"] > 0 and cost["peak_host_bytes"] > 1e8
        if stage != "checks":
            assert cost["flops"] > 1e6 and cost["tokens"] > 0, stage


def test_what_a_policy_answered_once_is_not_sampled_again(quickstart: Finished, warm: Warm, tmp_path: Path) -> None:
    out = copy_run(quickstart.out, tmp_path / "again")
    line = words(out, "--set", "stages.eval.judge={model: gold, noise: 0.1}", "--only", "eval")
    first = warm.run(line)
    assert first.returncode == 0, first.stderr
    assert "sampling" in first.stderr  # the copy's cache is empty
    before = lines(out, "eval", "samples.jsonl")
    # Other suites are another key, and the same answers.
    second = warm.run([*line, "--set", "stages.eval.suites=[win_rate, kl]"])
    assert second.returncode == 0, second.stderr
    assert "known from an earlier evaluation" in second.stderr and "sampling" not in second.stderr
    assert lines(out, "eval", "samples.jsonl") == before
    directory = folder(out, "eval")
    assert directory is not None
    metrics = manifests.verify(directory, full=True).metrics
    assert "dpo:judge_win_rate/mean" in metrics and not any("length/mean" in name for name in metrics)


def test_checkpoints_that_were_kept_make_a_curve_over_training(
    quickstart: Finished, warm: Warm, tmp_path: Path
) -> None:
    out = copy_run(quickstart.out, tmp_path / "curve")
    keep = ("--set", "stages.ppo.keep_adapters=true", "--set", "stages.eval.checkpoints=true")
    done = warm.run(words(out, *keep, "--only", "ppo", "--only", "eval"))
    assert done.returncode == 0, done.stderr
    trained, directory = folder(out, "ppo"), folder(out, "eval")
    assert trained is not None and directory is not None
    kept = sorted(path.name for path in (trained / "adapters").iterdir())
    assert kept == [f"step-{STEPS_PER_ROLLOUT * rollout}" for rollout in (1, 2, 3)]
    last = (trained / "adapters" / kept[-1] / "adapter_model.safetensors").read_bytes()
    assert last == (trained / "adapter" / "adapter_model.safetensors").read_bytes()
    curve = json.loads((directory / "findings.json").read_text())["curves"]["overoptimisation"]
    assert [(point["policy"], point["step"]) for point in curve] == [
        ("sft", None), ("dpo", None), ("ppo", None), ("ppo", STEPS_PER_ROLLOUT), ("ppo", 2 * STEPS_PER_ROLLOUT)
    ]  # fmt: skip
    assert all(point["proxy"] is not None and point["kl"] >= 0 for point in curve)
    assert {row["policy"] for row in lines(out, "eval", "samples.jsonl")} == {"sft", "dpo", "ppo"}


def test_two_seeds_share_the_base_and_are_compared_over_both(quickstart: Finished, warm: Warm, tmp_path: Path) -> None:
    out = copy_run(quickstart.out, tmp_path / "seeds")
    before = results(out)
    done = warm.run(words(out, "--seeds", "2"))
    assert done.returncode == 0, done.stderr
    assert results(out) == before
    second = out / "seeds" / "18"
    assert results(second)["base"] == before["base"] and results(second)["sft"] != before["sft"]
    assert "over seeds" in done.stdout
    compared = json.loads(warm.run(["compare", str(out), "--json"]).stdout)
    assert compared["prompts"] >= 3 and compared["prompts_left_out"] == 0
    for entry in compared["entries"]:
        assert set(entry["seeds"]) == {"17", "18"}
    # Either seed is a run like any other.
    assert states(warm.run(["status", str(second)])) == dict.fromkeys(STAGES, "done")
    assert warm.run(["compare", f"{out}:dpo", f"{second}:dpo"]).returncode == 0
