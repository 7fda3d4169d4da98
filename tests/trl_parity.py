"""The same training by prefopt's DPOTrainer and by TRL's: the same pairs, tokens, order, adapter and optimiser."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DPOConfig as TRLConfig
from trl import DPOTrainer as TRLTrainer

from prefopt.trainers.dpo import DPOConfig, DPOTrainer

MARK = "\n\nAssistant:"
STEPS, BATCH, ROWS, LONGEST = 30, 4, 24, 160
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH, "max_steps": STEPS, "logging_steps": 1,
    "lr_scheduler_type": "constant", "report_to": [], "bf16": False, "use_cpu": True, "disable_tqdm": True, "seed": 3,
    "save_strategy": "no", "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
    "logging_nan_inf_filter": False, "max_length": 512,
}  # fmt: skip
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Curves:
    """Losses of every step."""

    ours: list[float]
    theirs: list[float]

    @property
    def gap(self) -> float:
        """Largest relative difference."""
        return max(abs(a - b) / abs(b) for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def fall(self) -> float:
        """Mean loss of the first five steps minus that of the last five."""
        return (sum(self.theirs[:5]) - sum(self.theirs[-5:])) / 5


def hh_pairs(data: Path, model: Path, rows: int = ROWS) -> list[dict[str, str]]:
    """Short human pairs as text."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = []
    with gzip.open(data / "hh-rlhf-harmless" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            ends = {key: row[key].rindex(MARK) + len(MARK) for key in ("chosen", "rejected")}
            prompt = row["chosen"][: ends["chosen"]]
            pair = {key: row[key][end:] for key, end in ends.items()}
            if row["rejected"].startswith(prompt) and all(pair.values()) and pair["chosen"] != pair["rejected"]:
                if max(len(tokenizer(row[key])["input_ids"]) for key in pair) < LONGEST:
                    found.append({"prompt": prompt, **pair})
            if len(found) == rows:
                return found
    raise ValueError(f"only {len(found)} of {rows} pairs are short enough")


def train_both(
    data: Path, model: Path, folder: Path, options: Mapping[str, Any], learning_rate: float, cut_eos: bool = False
) -> Curves:
    """Train with either and return the losses.

    Args:
        data: The shared data sets.
        model: A folder with model and tokenizer.
        folder: For what the trainers write.
        options: Of the loss, as both spell them.
        learning_rate: Constant.
        cut_eos: Take the end-of-sequence token off prefopt's completions; a control.
    """
    more = {**COMMON, "learning_rate": learning_rate, **options}
    torch.manual_seed(0)
    theirs = TRLTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=TRLConfig(output_dir=str(folder / "trl"), gradient_checkpointing=False, **more),
        train_dataset=Dataset.from_list(hh_pairs(data, model)),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    rows = [dict(row) for row in theirs.train_dataset]
    for row in rows if cut_eos else ():
        row["chosen_ids"], row["rejected_ids"] = row["chosen_ids"][:-1], row["rejected_ids"][:-1]
    ours = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        DPOConfig(output_dir=str(folder / "prefopt"), **more),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    adapter = dict(ours.model.peft.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.model.named_parameters():
            if ".default." in name:
                parameter.copy_(adapter[name.replace(".default.", ".policy.")])
    for trainer in (theirs, ours):
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (ours, theirs)]
    return Curves(losses[0], losses[1])
