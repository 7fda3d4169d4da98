"""Times prefopt's DPOTrainer or RewardTrainer as the peer's script times TRL's, and prints one JSON line.

usage: python -m tests.benchmarks.against_trl.prefopt_side dpo|reward DIR --start DIR [--pairs 64] [--batch 4]
       [--max-length 1024] [--bf16] [--flops | --profile]

DIR is what the peers' make_model.py wrote; --start is what trl_side.py recorded: the rows in the order of TRL's steps
and the adapter that it began with. The first two optimiser steps are warm-up and are not counted. `reference_seconds`
is the whole pass of the reference before the first step, and `reference_share` the part of it, by tokens, that belongs
to counted pairs. With --flops the floating-point operations of the same training are counted instead of seconds. With
--profile torch's profiler writes a table of the same training, the reference's pass left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerCallback

from prefopt.models.products import use_quick_products
from prefopt.models.roles import POLICY, REWARD
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from prefopt.trainers.reward import RewardTrainer
from prefopt.trainers.reward_config import RewardConfig
from tests.benchmarks.against_trl.clock import Clock, counted_share, seconds
from tests.benchmarks.against_trl.plan import WARMUP_STEPS
from tests.benchmarks.against_trl.process_memory import PeakMemory
from tests.benchmarks.against_trl.start import Row, read_rows, start_from


def _attention(*shapes: Any, **_: Any) -> int:
    return int(sdpa_flop_count(*shapes[:3]))  # type: ignore[no-untyped-call]


def _attention_backward(*shapes: Any, **_: Any) -> int:
    return int(sdpa_backward_flop_count(*shapes[:4]))  # type: ignore[no-untyped-call]


# The counter knows the attention kernels of other devices; the shapes come in the order of the kernel's arguments.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["dpo", "reward"])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--flops", action="store_true")
    parser.add_argument("--profile", action="store_true")
    return parser


def build(a: argparse.Namespace, rows: list[Row], clock: Clock) -> DPOTrainer | RewardTrainer:
    """A trainer with the options of the peer's script and TRL's start."""
    common: dict[str, Any] = dict(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=a.batch, per_device_eval_batch_size=a.batch,
        num_train_epochs=1, learning_rate=1e-4, logging_steps=1, report_to=[], bf16=a.bf16, save_strategy="no",
        disable_tqdm=True, seed=0, max_length=a.max_length, use_cpu=not torch.cuda.is_available(),
        dataloader_drop_last=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    more: dict[str, Any] = {"train_dataset": rows, "peft_config": lora, "callbacks": [clock]}
    trainer: DPOTrainer | RewardTrainer
    if a.method == "dpo":
        trainer = DPOTrainer(str(a.dir / "model"), DPOConfig(**common), **more)
        start_from(a.start, trainer.model.peft, POLICY, None)
    else:
        trainer = RewardTrainer(str(a.dir / "model"), RewardConfig(**common), **more)
        start_from(a.start, trainer.model.peft, REWARD, trainer.model.score)
    return trainer


class Profiled(TrainerCallback):  # type: ignore[misc]
    """Profiles the steps after those of warm-up."""

    def __init__(self, warmup_steps: int = WARMUP_STEPS) -> None:
        self.profiler = profile()
        self._warmup_steps = warmup_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin after the warm-up."""
        if state.global_step == self._warmup_steps:
            self.profiler.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say where the time went."""
        self.profiler.stop()
        print(self.profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40))


def main() -> None:
    a = arguments().parse_args()
    use_quick_products()  # as the processes of stages do
    memory = PeakMemory()
    rows = read_rows(a.start)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) if a.flops else None
    clock = Clock(counter.get_total_flops if counter else seconds)
    torch.manual_seed(0)
    trainer = build(a, rows, clock)
    if a.profile:
        trainer.add_callback(Profiled())
    trainer.evaluate(rows[: a.batch])  # the reference's pass comes first, so it needs a warm-up as the steps do
    with counter or contextlib.nullcontext():
        clock.begin()
        trainer.train()
    share = counted_share(rows, a.batch) if a.method == "dpo" else 0.0
    reference = clock.reference if a.method == "dpo" else 0.0
    taken, counted = clock.steps + reference * share, (len(clock.ends) - WARMUP_STEPS) * a.batch
    told: dict[str, Any] = {"peer": f"prefopt-{a.method}", "pairs": counted}
    if counter:
        print(json.dumps({**told, "flops_per_pair": taken / counted}))
        return
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    told |= {"seconds": clock.steps, "reference_seconds": reference, "reference_share": share}
    told |= {"pairs_per_second": counted / taken, "first_loss": losses[0], "last_loss": losses[-1]}
    print(json.dumps({**told, **memory.report()}))


if __name__ == "__main__":
    main()
