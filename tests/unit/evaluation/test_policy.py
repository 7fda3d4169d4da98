import pytest
import torch

from prefopt.evaluation.policy import PairIds, PolicyBench
from prefopt.evaluation.summary import PolicyResult, policy_metrics, policy_table, win_scores
from prefopt.models.generate import Sampled, SamplingOptions
from prefopt.tracking.metrics import describe
from tests.tiny import random_rows, tiny_policy, tiny_tokenizer

ROWS = random_rows(7)


def open_bench(batch_size: int) -> PolicyBench:
    model = tiny_policy(adapter="first")
    torch.manual_seed(4)
    model.add_adapter("second", model.peft_config["first"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05 if ".first." in name else 0.1)
    return PolicyBench(model.eval(), tiny_tokenizer(), batch_size=batch_size)


@pytest.fixture(scope="module")
def bench() -> PolicyBench:
    return open_bench(3)


def as_samples(key: str) -> list[Sampled]:
    return [Sampled(tuple(row[key]), "", True) for row in ROWS]


def test_completion_logps_do_not_depend_on_the_batch(bench: PolicyBench) -> None:
    prompts, completions = [r["prompt_ids"] for r in ROWS], [r["chosen_ids"] for r in ROWS]
    together = bench.completion_logps("first", prompts, completions)
    alone = [bench.completion_logps("first", [p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert together == pytest.approx(alone, rel=1e-5)


def test_kl_to_itself_is_zero_and_to_another_policy_matches_sampling() -> None:
    bench = open_bench(500)
    prompt = [ROWS[0]["prompt_ids"]] * 3000
    samples = bench.sample("first", prompt, SamplingOptions(4, batch_size=1000, seed=1))
    ids = [list(s.ids) for s in samples]
    assert bench.along("first", "first", prompt, samples).kl == [0.0] * 3000
    exact = torch.tensor(bench.along("first", "second", prompt, samples).kl)
    ratios = torch.tensor(bench.completion_logps("first", prompt, ids)) - torch.tensor(
        bench.completion_logps("second", prompt, ids)
    )
    assert exact.mean() > 0
    error = ratios.std() / 3000**0.5
    assert abs(exact.mean() - ratios.mean()) < 4 * error
    assert exact.std() < ratios.std()  # the reason to prefer it


def test_preference_margins_are_differences_of_log_ratios(bench: PolicyBench) -> None:
    pairs = [PairIds(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in ROWS]
    margins = bench.preference_margins("first", None, pairs)
    swapped = bench.preference_margins(
        "first", None, [PairIds(p.prompt_ids, p.rejected_ids, p.chosen_ids) for p in pairs]
    )
    assert margins == pytest.approx([-m for m in swapped], abs=1e-4)
    assert any(abs(m) > 1e-3 for m in margins)
    assert bench.preference_margins("first", "first", pairs) == [0.0] * len(pairs)


def result(policy: str, scores: list[float], margins: list[float] = ()) -> PolicyResult:
    count = len(scores)
    return PolicyResult(
        policy=policy,
        prompts=[i // 2 for i in range(count)],
        lengths=[5] * count,
        finished=[True] * count,
        kl=[0.5] * count,
        scores=scores,
        violated=[score < 0 for score in scores],
        margins=margins,
    )


def test_swapping_policy_and_baseline_mirrors_the_win_rate() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 0.0]
    assert win_scores(a, b) == [0.0, 0.5, 1.0, 1.0]
    forward = policy_metrics(result("a", a), result("b", b), "gold")["win_rate/mean"]
    backward = policy_metrics(result("b", b), result("a", a), "gold")["win_rate/mean"]
    assert forward + backward == pytest.approx(1.0)


def test_metrics_are_all_explained_and_the_table_shows_them() -> None:
    base = result("sft", [0.0, -1.0, 2.0, 1.0])
    metrics = {
        "sft": policy_metrics(base, base, "gold"),
        "dpo": policy_metrics(result("dpo", [3.0, 2.0, 2.0, -1.0], [1.0, -1.0, 2.0]), base, "gold"),
    }
    for name, values in metrics.items():
        for key in values:
            assert describe(f"{name}:{key}").meaning
    assert metrics["dpo"]["preference/accuracy/mean"] == pytest.approx(2 / 3)
    assert "win_rate/mean" not in metrics["sft"] and "kl/mean" not in metrics["sft"]
    table = policy_table(metrics, "sft")
    assert table["columns"][0] == "policy" and table["rows"][0][0] == "sft (baseline)"
    assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_violation_interval_counts_prompts_not_samples() -> None:
    wide = policy_metrics(result("a", [1.0, -1.0] * 10), result("a", [1.0, -1.0] * 10), "gold")
    assert wide["violation_rate/mean"] == 0.5
    assert wide["violation_rate/ci_high"] - wide["violation_rate/ci_low"] > 0.5
