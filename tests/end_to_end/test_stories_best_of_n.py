"""The recipe that distils the best of many samples into one: a real pretrained model, a few prompts of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.rewards.scorers import LexiconScorer
from tests.benchmarks.distilled import of_stages, run_name
from tests.end_to_end.small import ROOT, Warm, folder

RECIPE = ROOT / "recipes" / "stories_best_of_n.yaml"
FEW = (
    "data.openings.max_samples=24",
    *(
        f"stages.{stage}.{key}"
        for stage in ("once", "twice")
        for key in ("samples_per_prompt=4", "max_new_tokens=16", "max_steps=3", "per_device_train_batch_size=4")
    ),
    *(f"stages.eval.{key}" for key in ("max_prompts=4", "samples_per_prompt=2", "max_new_tokens=16", "best_of=3")),
)


@pytest.mark.shared
@pytest.mark.slow
def test_the_best_are_learned_and_those_that_repeat_themselves_are_not(
    tmp_path: Path, warm: Warm, shared_data: Path, shared_models: Path
) -> None:
    out = tmp_path / "stories"
    overrides = [word for setting in FEW for word in ("--set", setting)]
    variables = {"PREFOPT_DATA": str(shared_data), "PREFOPT_MODELS": str(shared_models)}
    done = warm.run(["run", str(RECIPE), "--out", str(out), *overrides], **variables)
    assert done.returncode == 0, done.stderr
    scorer = LexiconScorer(shared_data / "vader-sentiment" / "vader_lexicon.txt")
    rows: dict[str, list[dict]] = {}
    for stage in ("once", "twice"):
        directory = folder(out, stage)
        assert directory is not None
        rows[stage] = [json.loads(line) for line in (directory / "targets.jsonl").read_text().splitlines()]
        scores = scorer.score([() for _ in rows[stage]], [row["completion"] for row in rows[stage]])
        assert [row["reward"] for row in rows[stage]] == pytest.approx([score.value for score in scores])
        metrics = json.loads((directory / "manifest.json").read_text())["metrics"]
        assert metrics["distill/kept_reward"] > metrics["distill/reward"]
        assert 0 <= metrics["violation_rate/repetition"] < 1
    assert rows["twice"][-len(rows["once"]) :] == rows["once"]
    assert run_name(out) == "stories_best_of_n"
    table = of_stages(out, ["once", "twice", "eval"])
    assert "| | `once` | `twice` |" in table and "`violation_rate/repetition`" in table and "`eval` " in table
