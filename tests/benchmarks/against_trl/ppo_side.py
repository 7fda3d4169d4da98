"""Times the ppo stage of the frontier's recipe as the peers' script times TRL's last PPO, and prints one JSON line.

usage: python -m tests.benchmarks.against_trl.ppo_side DIR --reward FOLDER [--write] [--episodes 64] [--batch 16]
       [--epochs 4] [--response 48] [--max-prompt 128] [--value shared|adapter] [--flops | --profile]

DIR is what the peers' make_model.py wrote. Options are those of tests/learning/frontier/frontier.yaml, except for the
sizes that peer_trl_ppo.py prescribes, and for the reward: a reward model with random weights as there, but some more
adapters on the policy's base, and no model of its own. --write writes it to FOLDER, and does nothing else. The first
rollout is warm-up and is not counted. With --flops the floating-point operations of the same training are counted
instead of seconds; with --profile torch's profiler writes a table of the counted rollouts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from prefopt.data.templates import Encoder
from prefopt.models.heads import new_reward_model, save_reward
from prefopt.models.products import use_quick_products
from prefopt.models.reward_artefact import RewardArtefact, open_reward, write_artefact
from prefopt.models.roles import REWARD
from prefopt.pipeline.adapters import open_trained_policy
from prefopt.pipeline.base_model import OpenBase, open_base
from prefopt.pipeline.context import StageContext, StopFlag
from prefopt.pipeline.stages.ppo import trainer_arguments
from prefopt.recipe.load import load
from prefopt.recipe.schema import PPOSpec
from prefopt.records import Message
from prefopt.rewards.model import RewardModelScorer
from prefopt.trainers.memory import KeepFreedBlocks
from prefopt.trainers.ppo import PPOTrainer
from tests.benchmarks.against_trl.clock import Clock, seconds
from tests.benchmarks.against_trl.prefopt_side import CPU_ATTENTION, Profiled
from tests.benchmarks.against_trl.process_memory import PeakMemory

RECIPE = Path(__file__).parents[2] / "learning" / "frontier" / "frontier.yaml"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--reward", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--response", type=int, default=48)
    parser.add_argument("--max-prompt", type=int, default=128)
    parser.add_argument("--value", choices=["shared", "adapter"], default="shared")
    parser.add_argument("--flops", action="store_true")
    parser.add_argument("--profile", action="store_true")
    return parser


def context_of(a: argparse.Namespace, folder: Path) -> StageContext:
    """The stage, with the sizes that are asked for."""
    os.environ |= {
        "FRONTIER_MODEL": str(a.dir / "model"),
        "FRONTIER_PROMPTS": str(folder),
        "FRONTIER_LEXICON": __file__,
    }
    (folder / "training.jsonl").write_text('{"messages": [{"role": "user", "content": "unused"}]}\n', encoding="utf-8")
    sizes = {
        "total_episodes": a.episodes + a.batch, "rollout_batch_size": a.batch, "per_device_train_batch_size": a.batch,
        "per_device_eval_batch_size": a.batch, "num_ppo_epochs": a.epochs, "max_new_tokens": a.response,
        "value": a.value, "score_prefixes": 0, "save_steps": 10**6, "logging_steps": a.epochs,
    }  # fmt: skip
    recipe = load(RECIPE, [f"stages.ppo.{name}={value}" for name, value in sizes.items()]).recipe
    return StageContext(
        recipe, "ppo", "ppo", "0" * 64, folder, 0, "speed", folder / "cache", folder, False, False,
        lambda step, total, metrics: None, lambda line: None, StopFlag(),
    )  # fmt: skip


def prompts(a: argparse.Namespace, base: OpenBase) -> list[dict[str, Any]]:
    """The prompts of the peer's script."""
    rows = []
    for line in (a.dir / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["prompt"]
        ids = base.tokenizer(text)["input_ids"]
        if len(ids) <= a.max_prompt:
            rows.append({"prompt": (Message("user", text),), "prompt_ids": ids})
    return rows[: a.episodes + a.batch]


def write_reward_model(a: argparse.Namespace) -> None:
    """A reward model with random weights, as an artefact."""
    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    made = new_reward_model(AutoModelForCausalLM.from_pretrained(a.dir / "model"), lora, None)
    save_reward(made.peft, REWARD, made.score, a.reward / "adapter", "random")
    write_artefact(a.reward, RewardArtefact())


def build(a: argparse.Namespace, folder: Path, clock: Clock) -> PPOTrainer:
    context = context_of(a, folder)
    spec = context.recipe.stages["ppo"]
    assert isinstance(spec, PPOSpec)
    base = open_base({}, context)
    args = trainer_arguments(spec, base, context)
    args.save_strategy, args.use_cpu = "no", not torch.cuda.is_available()
    model = open_trained_policy(spec, {}, context, base, reference=True)
    ensemble, artefact = open_reward(model, a.reward)
    encoder = Encoder(base.tokenizer, base.max_length(spec.max_length))
    scorer = RewardModelScorer(ensemble, encoder, base.tokenizer.pad_token_id, name="reward", artefact=artefact)
    return PPOTrainer(
        model, args, reward=scorer.score, train_dataset=prompts(a, base), processing_class=base.tokenizer,
        callbacks=[clock, KeepFreedBlocks()],  # as stages have it
    )  # fmt: skip


def main() -> None:
    a = arguments().parse_args()
    if a.write:
        write_reward_model(a)
        return
    use_quick_products()  # as the processes of stages do
    with tempfile.TemporaryDirectory() as scratch:
        memory = PeakMemory()
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) if a.flops else None
        clock = Clock(counter.get_total_flops if counter else seconds)
        trainer = build(a, Path(scratch), clock)
        if a.profile:
            trainer.add_callback(Profiled(a.epochs))
        with counter or contextlib.nullcontext():
            trainer.train()
    taken = clock.ends[-1] - clock.ends[a.epochs - 1]
    told: dict[str, Any] = {"peer": f"prefopt-ppo-{a.value}", "episodes": a.episodes}
    if counter:
        print(json.dumps({**told, "flops_per_episode": taken / a.episodes}))
        return
    rollouts = [row for row in trainer.state.log_history if "ppo/rollout_seconds" in row][1:]
    told |= {"seconds": taken, "episodes_per_second": a.episodes / taken}
    for name in ("sampling", "scoring", "rollout"):
        told[f"{name}_share"] = sum(row[f"ppo/{name}_seconds"] for row in rollouts) / taken
    print(json.dumps({**told, **memory.report()}))


if __name__ == "__main__":
    main()
