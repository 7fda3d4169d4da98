"""What `check --deep` trains for a step or two is a stage that can be trained, and takes as much as the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.pipeline.deep_check import candidates
from prefopt.pipeline.deep_stage import _short
from prefopt.pipeline.estimate import UPDATE, Estimate, Phase
from prefopt.recipe.schema import GroupSpec, GRPOSpec, KTOSpec, PPOSpec, RLOOSpec
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.trl import RLOOConfig


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


@pytest.mark.parametrize(("batch", "evaluation"), [(1, 1), (1, 8), (2, 3)])
@pytest.mark.parametrize("spec", [GRPOSpec, RLOOSpec])
def test_a_short_stage_of_groups_is_one_group(
    tmp_path: Path, spec: type[GroupSpec], batch: int, evaluation: int
) -> None:
    kind = spec.__name__.removesuffix("Spec").lower()
    whole = spec.model_validate({"kind": kind, "prompts": ["asked"], "reward": "rm", "num_iterations": 3})
    short = _short(whole, batch, evaluation, 1, 1)
    assert isinstance(short, GroupSpec) and short.reward.normalise == "none"
    args = RLOOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], num_generations=short.samples_per_prompt,
        **{name: getattr(short, name) for name in ("rollout_batch_size", "num_iterations", "num_mini_batches",
                                                   "total_episodes", "per_device_train_batch_size")},
    )  # fmt: skip
    assert args.max_steps == 1 and args.rollout_batch_size >= evaluation and args.num_generations >= 2


@pytest.mark.parametrize(("loss_type", "least"), [("kto", 2), ("apo_zero_unpaired", 1)])
def test_a_pass_of_kto_is_never_cut_to_a_single_row(loss_type: str, least: int) -> None:
    spec = KTOSpec.model_validate({"kind": "kto", "data": ["marked"], "loss_type": loss_type})
    memory = Estimate(0, 0, 0, 0, 1, (Phase(UPDATE, 8, 0, 10), Phase("evaluation", 3, 0, 1))).to_json()
    found = [rows["per_device_train_batch_size"] for rows in candidates(spec, {**memory, "limit": 10_000})]
    assert found[-1] == least and all(8 % rows == 0 for rows in found)
