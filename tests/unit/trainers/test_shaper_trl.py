"""The shaper as a reward function of TRL's own trainers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import TypeAdapter
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from prefopt.errors import IntegrityError
from prefopt.models.token_offsets import token_offsets
from prefopt.recipe.options.penalties import Penalties
from prefopt.rewards import Shaper
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.penalties import Penalty
from prefopt.rewards.scale import RewardScale
from prefopt.trainers import KeepShaper
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


BOTH = pytest.mark.parametrize(
    ("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["grpo", "rloo"]
)


def shaped(**options: Any) -> Shaper:
    tokenizer = tiny_tokenizer()
    specs = TypeAdapter(Penalties).validate_python(OPTIONS)
    return Shaper(
        [Penalty.of(spec, rule_cost(spec)) for spec in specs],
        score=lambda prompts, texts: [float(text.count("e")) for text in texts],
        end_token_ids=[tokenizer.eos_token_id],
        offsets=partial(token_offsets, tokenizer),
        **options,
    )


def built(trainer: type, config: type, folder: Path, shaper: Shaper, **more: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    tiny_llama().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    options = {"save_strategy": "no", **more}
    return trainer(
        model=str(folder / "base"),
        reward_funcs=[shaper],
        args=config(
            output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, num_generations=4, logging_steps=1,
            max_completion_length=6, report_to=[], use_cpu=True, bf16=False, learning_rate=1e-3, eval_strategy="no",
            per_device_eval_batch_size=4, disable_tqdm=True, **options,
        ),
        train_dataset=PROMPTS,
        eval_dataset=PROMPTS,
        processing_class=tokenizer,
        callbacks=[KeepShaper(shaper)],
    )  # fmt: skip


def rewarded(trained: Any) -> list[dict[str, Any]]:
    return [row for row in trained.state.log_history if "reward" in row]


@BOTH
def test_trl_trains_on_shaped_rewards(trainer: type, config: type, tmp_path: Path) -> None:
    shaper = shaped()
    trained = built(trainer, config, tmp_path, shaper)
    before = shaper.state_dict()
    trained.evaluate()  # also before anything was trained
    assert shaper.state_dict() == before
    trained.train()
    logs = rewarded(trained)
    assert len(logs) == 2
    for row in logs:
        assert 0 < row["penalty/length/rate"] <= 1 and row["penalty/length/weight"] == 0.5
        assert row["rewards/shaped_reward/mean"] == pytest.approx(row["reward"])
    weight = shaper.penalties[1].price.weight
    assert weight > 0 and logs[1]["penalty/short/weight"] > logs[0]["penalty/short/weight"]
    state = shaper.state_dict()
    evaluated = trained.evaluate()
    assert torch.isfinite(torch.tensor(evaluated["eval_reward"])) and shaper.state_dict() == state


@BOTH
def test_prices_and_scale_go_on_from_the_checkpoint(trainer: type, config: type, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    first = shaped(scale=RewardScale("running"))
    built(trainer, config, tmp_path, first, **saving).train()
    kept = [json.loads((tmp_path / f"checkpoint-{step}" / "shaper.json").read_text()) for step in (1, 2)]
    assert kept[1] == {"scale": first.scale.state_dict(), "penalties": first.state_dict()}
    again = shaped(scale=RewardScale("running"))
    resumed = built(trainer, config, tmp_path, again, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    row = rewarded(resumed)[-1]  # of the second step, priced at what the first one left
    assert row["step"] == 2 and kept[0]["penalties"]["short"]["weight"] > 0
    assert row["penalty/short/weight"] == pytest.approx(kept[0]["penalties"]["short"]["weight"])  # TRL's is float32
    assert again.scale.state_dict()["count"] == kept[1]["scale"]["count"] == 2 * kept[0]["scale"]["count"]
    (tmp_path / "checkpoint-1" / "shaper.json").unlink()
    with pytest.raises(IntegrityError, match="were not kept"):
        built(trainer, config, tmp_path, shaped(), **saving).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )
