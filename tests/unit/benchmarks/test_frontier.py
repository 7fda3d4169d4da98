"""The arithmetic of the frontier: scores at a KL, the limit, intervals, and what is trained."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from prefopt.recipe.load import load
from tests.learning.frontier import page, plan
from tests.learning.frontier.limit import joined, tilted, totals
from tests.learning.frontier.plan import Run
from tests.learning.frontier.runs import Results, reported, tried
from tests.learning.frontier.score import Point, chosen, reward_at, share, t_interval
from tests.learning.frontier.summary import Cell, cell, difference, verdict
from tests.tiny import tiny_llama, tiny_tokenizer

PATH = [Point(0.0, 1.0), Point(1.0, 3.0), Point(4.0, 5.0), Point(1.0, 4.0)]


def test_the_reward_at_a_kl_is_that_of_the_last_time_the_path_passes_it() -> None:
    assert reward_at(PATH[:2], 0.25) == pytest.approx(2.0)  # linear in the root
    assert reward_at(PATH[:3], 4.0) == 5.0
    assert reward_at(PATH, 2.25) == pytest.approx(4.5)
    assert reward_at(PATH, 4.1) is None and reward_at(PATH[:1], 0.0) is None


def test_the_share_is_of_the_gain_and_not_of_the_reward() -> None:
    limit = [Point(0.0, 1.0), Point(1.0, 3.0)]
    assert share(2.0, limit, 1.0) == 0.5 and share(1.0, limit, 1.0) == 0.0
    with pytest.raises(ValueError, match="known up to"):
        share(2.0, limit, 1.1)


def test_the_interval_of_a_few_runs_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.estimate == 3.0
    assert found.high - 3.0 == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    with pytest.raises(ValueError, match="two runs"):
        t_interval([1.0])


def test_the_setting_is_the_best_of_those_that_got_there() -> None:
    runs = {"near": PATH[:2], "far": PATH[:3], "best": [Point(0.0, 1.0), Point(4.0, 6.0)]}
    assert chosen(runs, 1.0) == "best" and chosen(runs, 9.0) is None
    assert chosen({"near": PATH[:2]}, 2.0) is None


def test_the_limit_is_that_of_a_model_whose_completions_can_be_counted() -> None:
    base = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    rewards = torch.tensor([0.0, 1.0, 3.0], dtype=torch.double)
    other = torch.tensor([0.1, 0.2, 0.7], dtype=torch.double)  # samples come from here, each as often as is likely
    drawn = torch.repeat_interleave(torch.arange(3), (other * 1000).long())
    log_weights = (base / other).log()[drawn]
    for tilt in (0.0, 0.7, 2.0):
        weights = base * torch.exp(tilt * rewards)
        best = weights / weights.sum()
        reward, kl, effective = tilted(rewards[drawn][None], log_weights[None], tilt)
        assert float(reward) == pytest.approx(float((best * rewards).sum()), abs=1e-9)
        assert float(kl) == pytest.approx(float((best * (best / base).log()).sum()), abs=1e-9)
        assert 1 <= float(effective) <= 1000


def test_parts_of_the_prompts_make_the_means_of_all() -> None:
    reward, kl = torch.randn(2, 10, dtype=torch.double, generator=torch.Generator().manual_seed(0)).unbind()
    parts = [
        [
            {"tilt": 0.5} | totals({"reward": reward[rows], "kl": kl[rows]}),
            {"n": 3, "kl": 0.4} | totals({"reward": kl[rows]}),
        ]
        for rows in (slice(0, 3), slice(3, 10))
    ]
    tilt, best = joined(parts)
    assert tilt["tilt"] == 0.5 and tilt["kl"] == pytest.approx(float(kl.mean()), abs=1e-12)
    assert tilt["reward"] == pytest.approx(float(reward.mean()), abs=1e-12)
    assert tilt["reward_se"] == pytest.approx(float(reward.std()) / math.sqrt(10), rel=1e-9)
    assert best["n"] == 3 and best["kl"] == 0.4 and best["reward"] == pytest.approx(float(kl.mean()), abs=1e-12)


@pytest.fixture
def world_of_frontier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "training.jsonl").write_text('{"messages": [{"role": "user", "content": "Once"}]}\n', encoding="utf-8")
    (tmp_path / "words.txt").write_text("happy\t2\n", encoding="utf-8")
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(plan.world, "peer", lambda: type("Peer", (), {"MODEL": str(tmp_path / "model")}))
    monkeypatch.setattr(plan.world, "lexicon", lambda: tmp_path / "words.txt")
    return tmp_path


def test_every_method_has_as_many_settings_and_samples_no_more_than_its_budget(
    world_of_frontier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({len(settings) for settings in plan.METHODS.values()}) == 1
    for method, budget in itertools.product(plan.METHODS, plan.BUDGETS):
        for setting in plan.METHODS[method]:
            run = Run(method, budget, setting, 3)
            made = plan.processes(run, world_of_frontier / "out", world_of_frontier)
            if method in ("rloo", "grpo"):
                words = list(made[0].words)
                sampled = int(words[words.index("--steps") + 1]) * int(words[words.index("--batch") + 1])
                assert words[words.index("--seed") + 1] == "3"
            else:
                for name, value in made[0].environment.items():
                    monkeypatch.setenv(name, value)
                words = list(made[0].words)
                changes = [word for before, word in itertools.pairwise(words) if before == "--set"]
                recipe = load(plan.RECIPE, changes).recipe
                assert recipe.seed == 3
                stages = [process.words[-1] for process in made]
                assert len(set(stages)) == len(stages)
                sampled = sum(
                    stage.total_episodes if stage.kind == "ppo" else stage.max_prompts * stage.samples_per_prompt
                    for stage in (recipe.stages[name] for name in stages)
                    if stage.kind in ("ppo", "collect")
                )
            assert 0.95 * budget <= sampled <= budget, run.key


def test_a_kl_counts_as_reached_when_all_seeds_reached_it() -> None:
    limit = [Point(0.0, 1.0), Point(4.0, 9.0)]
    near, far = PATH[:2], PATH[:3]
    assert cell("a", [far, far], limit, 1.0).share == t_interval([0.5, 0.5])
    partly = cell("a", [far, near], limit, 4.0)
    assert partly.reward is None and partly.reached == 1 and partly.rewards == [5.0, None]
    assert cell(None, [], limit, 4.0).reached == 0


def test_methods_are_compared_seed_by_seed() -> None:
    ours, other = (Cell("a", rewards, None, None) for rewards in ([3.0, 5.0, 7.0, None], [2.0, 4.1, 5.9, 0.0]))
    found = difference(ours, other)
    assert found is not None and found.estimate == pytest.approx(1.0) and verdict(found) == "above"
    assert verdict(difference(other, ours)) == "below"
    assert verdict(difference(ours, Cell("a", [3.5, 4.0, 7.5, 1.0], None, None))) == "no difference"
    assert difference(ours, Cell("a", [1.0, None, None, 1.0], None, None)) is None and verdict(None) == "–"


def test_the_page_says_what_the_finished_runs_show(tmp_path: Path) -> None:
    def row(reward: float, kl: float) -> dict[str, float]:
        return {"reward": reward, "kl": kl, "reward_se": 0.1, "kl_se": 0.0, "effective_samples": 50.0}

    limit = [row(1.0, 0.0), row(9.0, 4.0), row(13.0, 9.0)]
    best = [{"n": n, "reward": reward, "kl": kl} for n, reward, kl in ((1, 1.0, 0.0), (8, 6.0, 2.0), (32, 7.0, 2.5))]
    lines = [{"key": "base", "measured": [row(1.0, 0.0)]}, {"key": "limit", "measured": limit, "best_of_n": best}]
    # RLOO stays behind, and GRPO is not finished.
    for method, gain in (("ppo", 5.0), ("rloo", 3.0)):
        for setting, seed in itertools.product(plan.METHODS[method], (plan.CHOSEN_ON, *plan.REPORTED)):
            path = [row(1 + gain + seed / 100, 2.0), row(1 + 1.2 * gain, 4.0 if method == "rloo" else 8.0)]
            lines.append({"key": Run(method, 3_200, setting, seed).key, "measured": path})
    docs = tmp_path / "docs"
    (docs / "images").mkdir(parents=True)
    (docs / "benchmarks.md").write_text("# B\n<!-- measured: make learn -->\n<!-- /measured -->\n", encoding="utf-8")
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    results = Results(tmp_path / "results.jsonl", tmp_path, 1)
    assert all(run.key in results.rows for run in reported(results, [3_200], ["ppo", "rloo"]))
    assert not any(run.key in results.rows for run in tried([3_200], ["grpo"]))
    page.write(results, docs)
    told = (docs / "benchmarks.md").read_text(encoding="utf-8")
    of_ppo, of_rloo, of_best = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for name in ("PPO", "RLOO", "best of n")
        for line in told.splitlines()
        if line.startswith(f"| {name}")
    )
    share_at_2 = 5.03 / (8 * math.sqrt(0.5))
    assert of_ppo[1].startswith("6.03 (") and of_ppo[2].startswith(f"{share_at_2:.0%}") and of_ppo[3] == "–"
    assert of_rloo[3].startswith("+2.00") and of_rloo[3].endswith("above")
    assert of_rloo[4] == "not reached" and of_best[1] == "6.00" and of_best[4] == "not reached"
    assert "GRPO" not in told and "16,000" not in told
    assert (docs / "images" / "frontier-3200.png").read_bytes()[1:4] == b"PNG"
