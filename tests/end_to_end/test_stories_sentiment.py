"""The recipe with a word list as reward: a real pretrained model, no human labels, a few steps of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.rewards.scorers import LexiconScorer
from tests.end_to_end.small import ROOT, Warm, folder

RECIPE = ROOT / "recipes" / "stories_sentiment.yaml"
FEW = (
    "data.openings.max_samples=24",
    *(f"stages.pairs.{key}" for key in ("samples_per_prompt=4", "max_new_tokens=16")),
    *(f"stages.dpo.{key}" for key in ("max_steps=3", "per_device_train_batch_size=4")),
    *(f"stages.ppo.{key}" for key in ("total_episodes=16", "rollout_batch_size=8", "max_new_tokens=16")),
    *(f"stages.eval.{key}" for key in ("max_prompts=4", "samples_per_prompt=2", "max_new_tokens=16", "best_of=3")),
)


@pytest.mark.shared
@pytest.mark.slow
def test_the_word_list_judges_rewards_and_measures(
    tmp_path: Path, warm: Warm, shared_data: Path, shared_models: Path
) -> None:
    out = tmp_path / "stories"
    overrides = [word for setting in FEW for word in ("--set", setting)]
    variables = {"PREFOPT_DATA": str(shared_data), "PREFOPT_MODELS": str(shared_models)}
    done = warm.run(["run", str(RECIPE), "--out", str(out), *overrides], **variables)
    assert done.returncode == 0, done.stderr
    assert "chat template 'plain'" in done.stderr and "base (baseline)" in done.stdout
    scorer = LexiconScorer(shared_data / "vader-sentiment" / "vader_lexicon.txt")
    for stage in ("pairs", "ppo", "eval"):
        directory = folder(out, stage)
        assert directory is not None
        rows = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
        scores = scorer.score([() for _ in rows], [row["completion"] for row in rows])
        assert [row["reward"] for row in rows] == pytest.approx([score.value for score in scores])
    directory = folder(out, "pairs")
    assert directory is not None
    pairs = [json.loads(line) for line in (directory / "pairs.jsonl").read_text().splitlines()]
    assert pairs and all(row["reward_chosen"] > row["reward_rejected"] for row in pairs)
