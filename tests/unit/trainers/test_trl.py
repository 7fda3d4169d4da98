import hashlib
from pathlib import Path

import pytest

from prefopt.trainers.trl import SFTConfig, SFTTrainer, language_modeling_rows
from tests.tiny import random_rows, tiny_policy, tiny_tokenizer


def rows(count: int) -> list[dict]:
    return [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in random_rows(count)]


def trainer(directory: Path, **more) -> SFTTrainer:
    fields = {
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "max_steps": 18,
        "save_steps": 4,
        "logging_steps": 6,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "max_length": None,
        "logging_nan_inf_filter": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "dataloader_pin_memory": False,
    }
    return SFTTrainer(
        model=tiny_policy(),
        args=SFTConfig(output_dir=str(directory), **{**fields, **more}),
        train_dataset=language_modeling_rows(rows(24)),
        eval_dataset=language_modeling_rows(rows(8)),
        processing_class=tiny_tokenizer(),
    )


def weights_hash(model) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".policy." in name:
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def test_the_loss_is_on_completions_only() -> None:
    row = language_modeling_rows([{"prompt_ids": [1, 5, 6], "completion_ids": [7, 2]}])[0]
    assert row["input_ids"] == [1, 5, 6, 7, 2] and row["labels"] == [-100, -100, -100, 7, 2]


def test_trl_trains_with_our_checkpoints_and_resumes_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    losses = [row["loss"] for row in whole.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    stopped = trainer(tmp_path / "parts")
    stopped.train()
    for later in ("checkpoint-18", "checkpoint-16", "checkpoint-12"):  # as if it had been killed after step 8
        for file in sorted((tmp_path / "parts" / later).iterdir()):
            file.unlink()
        (tmp_path / "parts" / later).rmdir()
    resumed = trainer(tmp_path / "parts")
    checkpoint = resumed.resumable()
    assert checkpoint is not None and checkpoint.name == "checkpoint-8"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert not list((tmp_path / "parts").glob("**/README.md"))
    assert whole.evaluate()["eval_loss"] == pytest.approx(resumed.evaluate()["eval_loss"])
