"""What `check --deep` trains for a step or two is a stage that can be trained, and takes as much as the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.pipeline.deep_stage import _short
from prefopt.recipe.schema import PPOSpec
from prefopt.trainers.ppo_config import PPOConfig


@pytest.mark.parametrize(("batch", "evaluation"), [(1, 1), (1, 8), (2, 3)])
def test_a_short_ppo_stage_fits_together_whatever_the_long_one_is(tmp_path: Path, batch: int, evaluation: int) -> None:
    spec = PPOSpec.model_validate(
        {
            "kind": "ppo", "prompts": ["asked"], "reward": "rm", "samples_per_prompt": 8, "stop": ["\n"],
            "value_warmup_rollouts": 2, "mask_truncated_completions": True, "num_mini_batches": 4,
        }
    )  # fmt: skip
    short = _short(spec, batch, evaluation, 1, 1)
    assert isinstance(short, PPOSpec)
    names = (
        "rollout_batch_size", "samples_per_prompt", "num_ppo_epochs", "num_mini_batches", "total_episodes",
        "per_device_train_batch_size", "per_device_eval_batch_size",
    )  # fmt: skip
    args = PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], **{name: getattr(short, name) for name in names}
    )
    assert args.max_steps == 1 and args.rollout_batch_size >= evaluation
    # Sampled to the last token, and policy and value get gradients in the first step.
    assert short.stop == () and short.value_warmup_rollouts == 0 and not short.mask_truncated_completions
