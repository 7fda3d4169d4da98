"""The arithmetic of the experiments on penalties, what they train, and the page that says what they showed."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.data.toy import world
from prefopt.data.toy.reading import read_prompt
from prefopt.recipe.load import load
from prefopt.stats.intervals import Interval, wilson
from tests.learning.penalties import flagged, most, page, pairs, plan
from tests.learning.penalties.__main__ import Results
from tests.learning.penalties.plan import PARTS, Run
from tests.learning.penalties.reading import READERS
from tests.learning.penalties.score import Answers, by_policy, mixture, seen
from tests.learning.penalties.words import earned, without

VALENCES = {"happy": 2.0, "sad": -2.0, "glad": 1.5}


def answers(rewards: list[float], violated: list[bool]) -> Answers:
    names = [f"prompt {number}" for number in range(len(rewards))]
    return Answers(
        dict(zip(names, rewards, strict=True)), dict(zip(names, violated, strict=True)), dict.fromkeys(names, 0.5)
    )


def test_what_is_kept_is_a_share_of_the_gain_on_the_same_prompts() -> None:
    base, free = answers([0.0, 1.0, 2.0, 3.0], [False] * 4), answers([2.0, 3.0, 4.0, 5.0], [True] * 4)
    half = answers([1.0, 2.0], [True, False])  # the first two prompts alone
    found = seen(half, base, free)
    assert found.kept == Interval(0.5, 0.5, 0.5) and found.completions == 2 and found.kl == 0.5
    assert found.violations == wilson(1, 2)
    assert seen(base, base, None).kept is None
    with pytest.raises(KeyError):
        seen(answers([0.0] * 5, [False] * 5), base, free)


def test_completions_of_one_prompt_are_not_counted_as_independent() -> None:
    prompt = [{"role": "user", "content": "x"}]
    row = {"policy": "free", "prompt": prompt, "reward": 1.0, "kl": 0.1, "costs": {"banned": 0.5}}
    found = by_policy([row, {**row, "policy": "base", "costs": {"banned": 0.0}}], "banned", [3.0, 4.0])
    assert [*found["free"].violated.values()] == [True] and [*found["base"].violated.values()] == [False]
    assert [*found["base"].rewards.values()] == [4.0]
    with pytest.raises(ValueError, match="twice"):
        by_policy([row, row], "banned")


def test_the_mixture_has_its_shares() -> None:
    assert mixture(Interval(0.8, 0, 1), Interval(0.4, 0, 1), 0.05) == pytest.approx(0.78)


def test_the_most_that_can_be_kept_is_that_of_a_model_whose_completions_can_be_counted() -> None:
    # Two prompts; every completion is as likely as it is often there.
    rewards = torch.tensor([[0.0, 1.0, 2.0, 4.0], [1.0, 1.0, 3.0, 5.0]], dtype=torch.double)
    violated = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]], dtype=torch.double)
    for row in most.rows(rewards, violated):
        free = torch.exp(row["tilt"] * rewards)
        free /= free.sum(1, keepdim=True)
        held = row["held"]
        assert row["free"]["reward"] == pytest.approx(float((free * rewards).sum(1).mean()))
        assert row["free"]["kl"] == pytest.approx(float((free * (4 * free).log()).sum(1).mean()))
        assert held["violations"] == pytest.approx(plan.TARGET, abs=1e-6) and held["reward"] < row["free"]["reward"]
        gain = row["free"]["reward"] - float(rewards.mean())
        assert row["kept"] == pytest.approx((held["reward"] - float(rewards.mean())) / gain)
        # Among what violates as seldom none has more reward at this KL; e.g. not one that never violates.
        never = (torch.exp(row["tilt"] * rewards) * (1 - violated)).double()
        never /= never.sum(1, keepdim=True)
        price = (never * (4 * never).clamp(min=1e-300).log()).sum(1).mean()
        value = lambda reward, kl, tilt=row["tilt"]: tilt * reward - kl  # noqa: E731
        assert value(held["reward"], held["kl"]) >= value(float((never * rewards).sum(1).mean()), float(price))
    assert most.weight_for(rewards, 0 * violated, 1.0) == 0


def test_flagged_tokens_in_a_row_are_one_word() -> None:
    half, tenth = math.log(0.5), math.log(0.1)
    found = flagged.summary([([half, tenth, -1.0], [True, True, False]), ([half, -3.0], [True, False])])
    assert found["words"] == 2 and found["nll"] == pytest.approx(2.0)
    assert found["token"] == pytest.approx((0.5 + 0.1 + 0.5) / 3)
    assert found["first"] == pytest.approx(0.5) and found["word"] == pytest.approx((0.05 + 0.5) / 2)
    for wrong in ([True], [False]):
        with pytest.raises(ValueError, match="flagged words and others"):
            flagged.summary([([half], wrong)])


def test_what_a_word_earned_is_all_that_it_brought() -> None:
    rows = earned(["Happy, happy lamp", "sad glad", ""], VALENCES)
    assert [row[0] for row in rows] == ["happy", "glad", "lamp", "sad"]
    assert rows[0][1:] == (pytest.approx(1 / 3), pytest.approx(4 / 3))
    assert without("happy glad sad", VALENCES, ["happy"]) == -0.5


def test_the_groups_are_what_they_say() -> None:
    common, rare = pairs.groups()
    assert (len(common), len(rare)) == (pairs.COMMON, pairs.RARE)
    for pair in rare:
        assert "code" in read_prompt(pair.prompt).intents
        assert world.violations(pair.rejected) and not world.violations(pair.chosen)
    for pair in common:
        assert "code" not in read_prompt(pair.prompt).intents
        assert not world.violations(pair.chosen) and not world.violations(pair.rejected)


def test_a_fooled_reward_is_read_from_metrics_and_samples(tmp_path: Path) -> None:
    measures = [f"{name}/{part}" for name in ("gold", "violation_rate", "repetition") for part in ("mean", "ci_low")]
    metrics = {f"{policy}:{measure}": 0.5 for policy in ("sft", *plan.HACKED) for measure in measures}
    rows = [{"policy": policy, "proxy": value} for policy in ("sft", *plan.HACKED) for value in (1.0, 3.0)]
    for stage, found in (("fooled", metrics), ("proxy", {"reward/accuracy/mean": 0.6})):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.json").write_text(json.dumps(found))
    (tmp_path / "fooled" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = json.loads(json.dumps(READERS["e"]({name: tmp_path / name for name in ("fooled", "proxy")})))
    assert measured["policies"]["held"]["proxy"][0] == 2.0 and measured["reward"]["accuracy"] == [0.6] * 3
    assert "2.00 [1.00, 3.00]" in page.markdown({"e/17": {"measured": measured}})


@pytest.mark.parametrize("part", PARTS)
def test_every_stage_of_a_part_gets_the_seed_and_what_is_shared_has_its_own(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stories260k-hf", "vader-sentiment"):
        (tmp_path / name).mkdir()
    (tmp_path / "stories260k-hf" / "config.json").write_text("{}")
    (tmp_path / "vader-sentiment" / "vader_lexicon.txt").write_text("happy\t2\n")
    for name in ("training", "held_out", "stories", "shop", "codes"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    for name in ("PREFOPT_DATA", "PREFOPT_MODELS", "PENALTIES_PAIRS", "PENALTIES_STORIES"):
        monkeypatch.setenv(name, str(tmp_path))
    words = plan.words(Run(part, 23), tmp_path / "out")
    changes = [word for before, word in itertools.pairwise(words) if before == "--set"]
    recipe = load(Path(words[3]), changes).recipe
    for name in PARTS[part].stages:
        assert recipe.stages[name].seed == 23
    for name in PARTS[part].shared:
        assert recipe.seed == 17 and recipe.stages[name].seed in (17, None)
    if part == "b":
        assert recipe.stages["told"].costs[0].words == plan.WORDS
    if part == "far":
        held, free = (recipe.stages[name] for name in ("lagrange", "free"))
        assert held.reward.penalties[0].words == plan.WORDS and held.kl.coefficient == free.kl.coefficient == 0.1
    weights = {"a-grid": plan.GRID, "b-grid": plan.WORD_GRID}.get(part, {})
    for name, weight in weights.items():
        if name in PARTS[part].stages:
            assert recipe.stages[name].reward.penalties[0].weight == weight


def policy(kept: list[float] | None) -> dict[str, Any]:
    return {"violations": [0.02, 0.01, 0.03], "completions": 4096, "reward": [1.0, 0.9, 1.1], "kept": kept, "kl": 1.5}


def results() -> dict[str, Any]:
    kept = {"weight-3": [0.5, 0.4, 0.6], "weight-0.5": [0.9, 0.8, 1.0], "lagrange": [1, 0.9, 1.1]}
    policies = {name: policy(kept.get(name)) for name in (*kept, "free", "base")}
    model = {"token": 0.5, "first": 0.1, "word": 0.05, "nll": 1.0, "words": 9.0}
    losses = {name: {"shop": [0.8, 0.7, 0.9], "codes": [0.4 + 0.2 * (name != "plain")] * 3} for name in plan.LOSSES}
    answered = {name: {"gold": [1.0] * 3, "proxy": [2.0] * 3, "violation_rate": [0.1] * 3, "repetition": [0.0] * 3}
                for name in ("sft", *plan.HACKED)}  # fmt: skip
    measured = {
        "a/17": {"policies": {name: each for name, each in policies.items() if "weight" not in name}},
        "a-grid/17": {"policies": {name: each for name, each in policies.items() if "weight" in name}},
        "b/17": {"policies": policies, "without": policies},
        "far/17": {"policies": policies, "without": policies},
        "c/17": {"models": {"base": model, "imitate": model, "unlearn": {**model, "token": 0.05, "nll": 1.02}}},
        "d/17": {"losses": losses},
        "e/17": {"policies": answered, "reward": {"accuracy": [0.6] * 3}},
        "most": most.rows(torch.tensor([[0.0, 1.0, 2.0, 4.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])),
        "speed": {"completions": 9.0, "tokens": 8.0, "sampling_seconds": 5.0, "all_seconds": 0.2, "all_share": 0.04},
    }
    return {key: {"key": key, "measured": value} for key, value in measured.items()}


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    marks = f"<!-- measured: {page.MARKER} -->\nold\n<!-- /measured -->"
    (tmp_path / "benchmarks.md").write_text(f"before\n{marks}\nafter\n")
    page.write(tmp_path, results())
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "\nold\n" not in text and page.NOT_YET not in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows[:5]] == ["base", "free", "lagrange", "weight-0.5", "weight-3"]
    assert "| 10.0 | +2.0% |" in text and "+1.0 |" in text
    assert (tmp_path / "images" / "penalties.png").read_bytes().startswith(b"\x89PNG")
    assert page.NOT_YET in page.markdown({key: row for key, row in results().items() if key != "b/17"})


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results().values()))
    found = Results(tmp_path / "results.jsonl", tmp_path, 1)
    assert [run.key for run in found.missing(["a", "d"], [17, 18])] == ["a/18", "d/18"]
    assert [run.key for run in found.missing(list(PARTS), [17])] == ["b-grid/17"]
