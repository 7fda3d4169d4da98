"""The shaper as a reward function of TRL's own trainers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import TypeAdapter
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from prefopt.models.token_offsets import token_offsets
from prefopt.recipe.options.penalties import Penalties
from prefopt.rewards import Shaper
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.penalties import Penalty
from tests.tiny import tiny_llama, tiny_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]
PROMPTS = Dataset.from_list([{"prompt": text} for text in ("the lamp", "is", "the chair costs", "nine euro")])
OPTIONS: list[dict[str, Any]] = [
    {"cost": "length", "limit": 2, "weight": 0.5},
    {"cost": "length", "name": "short", "limit": 2, "target_rate": 0.01},
    {"cost": "repetition", "weight": 1.0},
    {"cost": "missing_eos", "weight": 1.0},
]


@pytest.mark.parametrize(
    ("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["grpo", "rloo"]
)
def test_trl_trains_on_shaped_rewards(trainer: type, config: type, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    tiny_llama().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    specs = TypeAdapter(Penalties).validate_python(OPTIONS)
    shaper = Shaper(
        [Penalty.of(spec, rule_cost(spec)) for spec in specs],
        score=lambda prompts, texts: [float(text.count("e")) for text in texts],
        end_token_ids=[tokenizer.eos_token_id],
        offsets=partial(token_offsets, tokenizer),
    )
    trained = trainer(
        model=str(tmp_path / "base"),
        reward_funcs=[shaper],
        args=config(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4, logging_steps=1,
            max_completion_length=6, report_to=[], use_cpu=True, bf16=False, learning_rate=1e-3, eval_strategy="no",
            save_strategy="no", per_device_eval_batch_size=4, disable_tqdm=True,
        ),
        train_dataset=PROMPTS,
        eval_dataset=PROMPTS,
        processing_class=tokenizer,
    )  # fmt: skip
    shaper.training = lambda: trained.model.training
    trained.train()
    logs = [row for row in trained.state.log_history if "reward" in row]
    assert len(logs) == 2
    for row in logs:
        assert 0 < row["penalty/length/rate"] <= 1 and row["penalty/length/weight"] == 0.5
        assert row["rewards/shaped_reward/mean"] == pytest.approx(row["reward"])
    weight = shaper.penalties[1].price.weight
    assert weight > 0 and logs[1]["penalty/short/weight"] > logs[0]["penalty/short/weight"]
    state = shaper.state_dict()
    evaluated = trained.evaluate()
    assert torch.isfinite(torch.tensor(evaluated["eval_reward"])) and shaper.state_dict() == state
