"""Train with TRL's RLOO or GRPO as the peers' script does, and keep adapters on the way.

usage: python -m tests.learning.frontier.trl_side grpo|rloo PROMPTS OUT --steps N --lr X --beta X [--batch 64]
       [--generations 8] [--iterations 1] [--seed 0] [--keep 10]

Model, reward, adapter and settings are those of peer_trl_frontier.py, except that the learning rate falls to 0 and that
each opening is there once, as for all methods here. What the script measures on the way is measured afterwards.
OUT gets `step-N` folders; a JSON line says the seconds of training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback

from tests.learning.frontier import plan, world


class Keep(TrainerCallback):  # type: ignore[misc]
    def __init__(self, steps: set[int], out: Path) -> None:
        self._steps, self._out = steps, out

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            model.save_pretrained(self._out / f"step-{state.global_step}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["grpo", "rloo"])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    for name, kind, default in (
        ("steps", int, None), ("lr", float, 1e-3), ("beta", float, 0.05), ("batch", int, 64), ("generations", int, 8),
        ("iterations", int, 1), ("seed", int, 0), ("keep", int, 10),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default, required=default is None)
    a = parser.parse_args()
    peer = world.peer()
    tokenizer = AutoTokenizer.from_pretrained(peer.MODEL)
    config, trainer = {
        "grpo": (peer.GRPOConfig, peer.GRPOTrainer),
        "rloo": (peer.RLOOConfig, peer.RLOOTrainer),
    }[a.method]
    args = config(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=a.batch, num_generations=a.generations,
        max_completion_length=world.NEW_TOKENS, learning_rate=a.lr, max_steps=a.steps * a.iterations,
        num_iterations=a.iterations, beta=a.beta, report_to=[], use_cpu=not torch.cuda.is_available(),
        save_strategy="no", logging_steps=1000, disable_tqdm=True, seed=a.seed,
        model_init_kwargs={"dtype": "float32"}, **plan.TRL,
    )  # fmt: skip
    steps = {a.iterations * (a.steps * number // a.keep) for number in range(1, a.keep + 1)}
    rows = [{"prompt": text} for text in world.training_prompts(a.prompts)]
    start = time.perf_counter()
    trainer(
        model=peer.MODEL,
        args=args,
        reward_funcs=lambda completions, **kwargs: [peer.sentiment(each) for each in completions],
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **plan.TRL_LORA),
        callbacks=[Keep(steps, a.out)],
    ).train()
    print(json.dumps({"seconds": time.perf_counter() - start, "episodes": a.steps * a.batch}))


if __name__ == "__main__":
    main()
