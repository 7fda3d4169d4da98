"""The share of headroom: 0 at the baseline, 1 at the best of n, and means over prompts in between."""

import random

import pytest

from prefopt.evaluation.summary import PolicyResult, headroom, policy_metrics, policy_table

PROMPTS = [prompt for prompt in range(40) for _ in range(2)]


def result(policy: str, scores: list[float], ceiling: dict[int, float] | None = None) -> PolicyResult:
    lengths, finished = [3] * len(scores), [True] * len(scores)
    return PolicyResult(
        policy, PROMPTS, lengths, finished, kl=[0.1] * len(scores), scores=scores, ceiling=ceiling or {}
    )


def start() -> tuple[PolicyResult, dict[int, float]]:
    rng = random.Random(0)
    scores = [rng.gauss(1, 0.3) for _ in PROMPTS]
    by_prompt = {p: (scores[2 * p] + scores[2 * p + 1]) / 2 for p in range(40)}
    best = {p: by_prompt[p] + 1 + rng.random() for p in range(0, 40, 2)}  # measured on half of the prompts
    return result("sft", scores, best), best


def test_the_baseline_has_gone_nowhere_and_the_best_of_n_all_the_way() -> None:
    baseline, _ = start()
    assert headroom(result("same", list(baseline.scores)), baseline) == (0.0, 0.0, 0.0)
    everything = {p: 2.0 + p for p in range(40)}
    baseline = result("sft", list(baseline.scores), everything)
    ceiling = result("best", [everything[p] for p in PROMPTS])
    share, low, high = headroom(ceiling, baseline)
    assert share == pytest.approx(1.0) and low == pytest.approx(1.0) and high == pytest.approx(1.0)


def test_it_is_the_gain_over_all_prompts_by_the_room_that_was_measured() -> None:
    baseline, best = start()
    policy = result("dpo", [score + 0.5 for score in baseline.scores])
    by_prompt = {p: (baseline.scores[2 * p] + baseline.scores[2 * p + 1]) / 2 for p in best}
    room = sum(best[p] - by_prompt[p] for p in best) / len(best)
    share, low, high = headroom(policy, baseline)
    assert share == pytest.approx(0.5 / room) and low < share < high


def test_a_table_shows_the_ceiling_for_the_baseline_and_the_share_for_the_others() -> None:
    baseline, best = start()
    policy = result("dpo", [score + 0.5 for score in baseline.scores])
    metrics = {r.policy: policy_metrics(r, baseline, "gold") for r in (baseline, policy)}
    assert metrics["sft"]["best_of_n/mean"] == pytest.approx(sum(best.values()) / len(best))
    assert "headroom/mean" not in metrics["sft"] and "best_of_n/mean" not in metrics["dpo"]
    table = policy_table(metrics, "sft")
    columns, rows = table["columns"], table["rows"]
    assert rows[0][columns.index("share of headroom")] == "–" and "%" in rows[1][columns.index("share of headroom")]
    assert rows[1][columns.index("best of n")] == "–"


def test_without_a_ceiling_nothing_is_said_of_headroom() -> None:
    baseline = result("sft", [1.0] * len(PROMPTS))
    assert not [name for name in policy_metrics(result("dpo", [2.0] * 80), baseline, "gold") if "headroom" in name]
