"""What is trained for the frontier, how much each run samples, which rows count, and what the page says of them."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.recipe.load import load
from prefopt.trainers.reward_scaling import RewardScaling
from tests.learning.frontier import measure, page, plan, world
from tests.learning.frontier.plan import Run
from tests.learning.frontier.runs import Results, reported, tried
from tests.learning.results import python
from tests.tiny import tiny_llama, tiny_tokenizer

DISTINCT = 239
"""Of the real world's training openings."""


def openings(count: int, distinct: int) -> str:
    texts = [f"the lamp {number % distinct}" for number in range(count)]
    return "".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in texts)


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a world with a model that says letters, which are what it is paid for."""
    (tmp_path / "training.jsonl").write_text(openings(world.TRAINING, DISTINCT), encoding="utf-8")
    (tmp_path / "held_out.jsonl").write_text(openings(2 * DISTINCT + 6, DISTINCT + 3), encoding="utf-8")
    (tmp_path / "words.txt").write_text("".join(f"{letter}\t{n}\n" for n, letter in enumerate("abcdefghijklm", 1)))
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(world, "peer", lambda: type("Peer", (), {"MODEL": str(tmp_path / "model")}))
    monkeypatch.setattr(world, "lexicon", lambda: tmp_path / "words.txt")
    return tmp_path


def test_training_has_each_opening_once_and_the_held_out_ones_say_which_are_new(prompts: Path) -> None:
    assert world.distinct(["Once upon", "a time", "once  upon", "a time", "there"]) == ["Once upon", "a time", "there"]
    assert len(world.training_prompts(prompts)) == DISTINCT
    counts = world.counts(prompts)
    assert counts == {"drawn": world.TRAINING, "distinct": DISTINCT, "held_out": 2 * DISTINCT + 6, "unseen": 6}


def of_recipe(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stages that a run goes through, as the recipe with its changes has them."""
    made = plan.processes(run, folder / "out", folder)
    for name, value in made[0].environment.items():
        monkeypatch.setenv(name, value)
    words = list(made[0].words)
    changes = [word for before, word in itertools.pairwise(words) if before == "--set"]
    recipe = load(plan.RECIPE, changes).recipe
    assert recipe.seed == run.seed
    stages = [process.words[-1] for process in made]
    assert len(set(stages)) == len(stages)
    return (recipe.stages[name] for name in stages)


def samples_of(stage: Any) -> int:
    """Completions that a stage samples, by the rules of the trainers and of `collect`."""
    if stage.kind == "collect":
        return int(min(stage.max_prompts, DISTINCT) * stage.samples_per_prompt)
    if stage.kind != "ppo":
        return 0
    scaling = RewardScaling(normalise=stage.reward.normalise, reference_samples=stage.reward.reference_samples)
    rollouts = -(-stage.total_episodes // stage.rollout_batch_size)  # the last one is whole as well
    return int(rollouts * stage.rollout_batch_size + scaling.samples_of_reference(stage.rollout_batch_size))


@pytest.mark.parametrize("budget", plan.BUDGETS)
@pytest.mark.parametrize("method", plan.METHODS)
def test_every_method_has_as_many_settings_and_samples_what_it_may(
    method: str, budget: int, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = plan.settings(method, budget)
    assert (method in plan.methods(budget)) == bool(settings)
    assert len(settings) == (6 if budget == plan.BUDGETS[0] else 0 if method in plan.VARIANTS else 4)
    for setting in settings:
        run = Run(method, budget, setting, 3)
        if method in plan.PEERS:
            words = list(plan.processes(run, prompts / "out", prompts)[0].words)
            options = dict(itertools.pairwise(words))
            sampled = int(options["--steps"]) * int(options["--batch"])
            assert options["--seed"] == "3" and int(options["--steps"]) % plan.KEEP == 0
        else:
            stages = list(of_recipe(run, prompts, monkeypatch))
            sampled = sum(samples_of(stage) for stage in stages)
            for stage in stages:
                if stage.kind == "ppo":  # more policies of a run would flatter it
                    rollouts = stage.total_episodes // stage.rollout_batch_size
                    steps = rollouts * stage.num_ppo_epochs * stage.num_mini_batches
                    assert abs(math.ceil(steps / stage.save_steps) - plan.KEEP) <= 1
        assert 0.97 * budget <= sampled <= budget, run.key


@pytest.mark.slow
def test_a_smaller_budget_is_sampled_to_the_last_pair_and_rounds_share_the_prompts(
    prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `collect` writes is counted: every round samples from the base here, so that nothing has to be trained."""
    (prompts / "training.jsonl").write_text(openings(20, 7), encoding="utf-8")
    setting = next(iter(plan.settings("iterative dpo", plan.BUDGETS[0])))
    monkeypatch.setattr(plan, "METHODS", {"iterative dpo": {96: plan.settings("iterative dpo", plan.BUDGETS[0])}})
    made = plan.processes(Run("iterative dpo", 96, setting, 1), prompts / "out", prompts)
    words = list(made[0].words)[:-2]
    for number in range(1, plan.ROUNDS + 1):
        words += ["--only", f"pairs{number}", "--set", f"stages.pairs{number}.max_new_tokens=16"]
        words += ["--set", f"stages.pairs{number}.policies=base"]
    python(words, made[0].environment)
    files = list((prompts / "out").glob("stages/pairs*/*/samples.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    assert len(files) == plan.ROUNDS
    assert len(rows) == 96
    answered = Counter(json.dumps(row["prompt"]) for row in rows)
    assert len(answered) == 7
    assert max(answered.values()) - min(answered.values()) <= 4  # one turn: so many completions are of one


def test_what_is_measured_tells_unseen_openings_apart() -> None:
    rewards, kl = torch.tensor([1.0, 2.0, 6.0, 3.0]).double(), torch.tensor([0.5, 1.5, 2.0, 4.0]).double()
    found = measure.summary(rewards, kl, torch.tensor([False, True, True, False]))
    assert found["reward"] == 3.0 and found["kl"] == 2.0
    assert found["reward_se"] == pytest.approx(float(rewards.std()) / 2)
    assert found["blocks"] == {"reward": rewards.tolist(), "kl": kl.tolist()}
    of_unseen = {"reward": 4.0, "kl": 1.75, "count": 2, "blocks": {"reward": [2.0, 6.0], "kl": [1.5, 2.0]}}
    assert found["unseen"] == of_unseen
    assert measure.blocks(torch.arange(2.0 * measure.BLOCKS))[:2] == [0.5, 2.5]


def test_policies_know_how_far_training_had_come(tmp_path: Path) -> None:
    run = Run("iterative dpo", 3_200, "beta 0.3, lr 1e-3", 0)
    for path in ("dpo1/k/adapters/step-5", "dpo1/k/adapters/step-10", "dpo2/k/adapters/step-8"):
        (tmp_path / "stages" / path).mkdir(parents=True)
    found = plan.adapters(run, tmp_path)
    assert [path.name for path in found] == ["step-5", "step-10", "step-8"]
    assert list(found.values()) == [0.25, 0.5, 1.0]


def test_a_row_of_another_recipe_or_setting_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tried([3_200], ["ppo", "rloo"])
    gone = replace(runs[0], setting="KL 99, lr 1")
    lines = [{"key": run.key, "digest": run.digest} for run in (*runs, gone)]
    reported = replace(runs[0], seed=plan.REPORTED[0])
    lines += [{"key": run.key, "digest": run.digest, "measured": [{"reward": 1.0}]} for run in (runs[1], reported)]
    keys = ("base", "limit", "limit/1", "dpo/3200/beta 0.3, lr 1e-3/0")
    lines += [{"key": key, "measured": [{"blocks": {"kl": [], "reward": []}}]} for key in keys]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert set(Results(file, tmp_path, 1).rows) == {run.key for run in runs} | {"limit", "limit/1"}
    said = capsys.readouterr().err
    assert said.startswith("4 rows") and gone.key in said and reported.key in said and "base" in said
    recipe = tmp_path / "frontier.yaml"
    text = plan.RECIPE.read_text("utf-8")
    monkeypatch.setattr(plan, "RECIPE", recipe)
    recipe.write_text(f"# another comment\n{text}", "utf-8")
    assert Results(file, tmp_path, 1).rows.keys() >= {run.key for run in runs}
    recipe.write_text(text.replace("lora_r: 16", "lora_r: 8"), "utf-8")
    left = Results(file, tmp_path, 1).rows
    assert not any(run.key in left for run in runs if run.method == "ppo")
    assert all(run.key in left for run in runs if run.method == "rloo")
    monkeypatch.setattr(world, "NEW_TOKENS", 24)
    assert not any(run.key in Results(file, tmp_path, 1).rows for run in runs)


def row(reward: float, kl: float, trained: float = 0.0) -> dict[str, Any]:
    errors = {"reward_se": 0.1, "kl_se": 0.0, "effective_samples": 50.0, "effective_samples_se": 1.0}
    blocks = {"kl": [kl] * 4, "reward": [reward - 0.02, reward + 0.02] * 2}
    means = {"reward": reward, "kl": kl, "blocks": blocks}
    return {**means, "trained": trained, **errors, "unseen": {**means, "reward": reward + kl, "count": 3}}


def results_of(folder: Path) -> Results:
    """RLOO stays behind, reaches 5 nats with four of five seeds only; DPO never does, and GRPO is not finished."""
    limit = [row(1.0, 0.0), row(9.0, 4.0), row(13.0, 9.0)]
    best = [row(reward, kl) | {"n": n} for n, reward, kl in ((1, 1.2, 0.0), (8, 6.2, 2.0), (32, 7.2, 2.5))]
    counts = {"drawn": 448, "distinct": 239, "held_out": 512, "unseen": 238}
    lines: list[dict[str, Any]] = [
        {"key": "base", "measured": [row(1.0, 0.0)], "openings": counts},
        {"key": "limit", "measured": limit, "best_of_n": best},
    ]
    for method, gain in (
        ("ppo", 5.0),
        ("ppo, one epoch", 4.0),
        ("ppo, one epoch, shared value", 3.5),
        ("ppo, scored at the end", 4.5),
        ("rloo", 3.0),
        ("dpo", 5.0),
    ):
        for setting, seed in itertools.product(plan.settings(method, 3_200), (plan.CHOSEN_ON, *plan.REPORTED)):
            run = Run(method, 3_200, setting, seed)
            far = 4.0 if method == "dpo" or (method == "rloo" and seed == plan.REPORTED[-1]) else 8.0
            path = [row(1 + gain + seed / 100, 2.0, 0.5), row(1 + 1.2 * gain, far, 1.0)]
            lines.append({"key": run.key, "digest": run.digest, "measured": path})
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Results(folder / "results.jsonl", folder, 1)


def test_the_page_says_what_the_finished_runs_show(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "images").mkdir(parents=True)
    (docs / "benchmarks.md").write_text("# B\n<!-- measured: make learn -->\n<!-- /measured -->\n", encoding="utf-8")
    results = results_of(tmp_path)
    assert all(run.key in results.rows for run in reported(results, [3_200], ["ppo", "rloo", "dpo"]))
    page.write(results, docs)
    told = (docs / "benchmarks.md").read_text(encoding="utf-8")
    table = {
        (kl, cells[0]): dict(zip(page.HEADER, cells, strict=True))
        for kl, part in enumerate(told.split("*Gain in reward at KL ")[1:])
        for line in part.splitlines()
        if line.startswith("| ") and (cells := [cell.strip() for cell in line.split("|")[1:-1]])[0] != "method"
    }
    ours, theirs, best = table[0, "PPO"], table[0, "RLOO (TRL)"], table[0, "best of n from the base"]
    assert ours["gain"].startswith("5.03 (") and ours["seeds"] == "5 of 5" and ours["policies at"] == "50–50%"
    assert ours["share of the limit's gain"].startswith(f"{5.03 / 4:.0%}") and ours["PPO less this one"] == "–"
    assert table[0, "PPO, one epoch"]["PPO less this one"].startswith("+1.00")
    assert "*PPO, one epoch* less others, each interval alone: *PPO, one epoch, shared value*: +0.50 (+0.50 t" in told
    hears_as_much = "*PPO, scored at the end alone* less others, each interval alone: *RLOO (TRL)*: +"
    assert f"{hears_as_much}1.50 (+1.50 to +1.50), 5 pairs; *DPO on own samples*: -0.50" in told  # at 2
    assert f"{hears_as_much}1.65 (+1.65 to +1.65), 4 pairs.\n" in told  # at 5, where DPO does not get
    unseen = page.HEADER[-1]
    assert ours[unseen] == "7.03" and theirs[unseen].startswith("5.03; +2.00 (+2.00 to")
    assert theirs["PPO less this one"].startswith("+2.00") and theirs["PPO less this one"].endswith("5 pairs: above")
    assert best["gain"].startswith("5.00 (") and best["setting"] == "n 8"
    assert best["PPO less this one"].startswith("+0.03") and best["PPO less this one"].endswith("seeds: not told apart")
    partly, never, short = table[1, "RLOO (TRL)"], table[1, "DPO on own samples"], table[1, "best of n from the base"]
    assert partly["seeds"] == "4 of 5" and partly["PPO less this one"].endswith("4 pairs: above")
    assert partly["policies at"] == "50–100%"
    assert never["gain"] == "not reached with any setting on the first seed"
    assert never["PPO less this one"] == "not compared" == short["PPO less this one"]
    assert "the largest n, 32, has a KL of 2.50" in short["gain"]
    # At 2: above RLOO, like DPO and the best of n. At 5: above RLOO; the other two cannot be compared.
    assert "above the other methods and the best of n in 2 of 6 comparisons, below in 0; 2 could not be made" in told
    assert "448 openings drawn for training 239 are distinct" in told and "274 are also trained on" in told
    assert "GRPO" not in told and "16,000" not in told
    assert (docs / "images" / "frontier-3200.png").read_bytes()[1:4] == b"PNG"
