"""kto as a whole: the loss by hand, its rows, its passes, its resume, and that it learns."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from prefopt.errors import DataError, InputError
from prefopt.models.roles import COPY, POLICY, START
from prefopt.tracking.metrics import describe
from prefopt.trainers.callbacks import canonical_metrics
from prefopt.trainers.trl import KTOConfig, KTOTrainer
from prefopt.trainers.unpaired import UnpairedCollator, imbalance
from tests.tiny import random_rows, tiny_policy, tiny_tokenizer
from tests.unit.trainers.test_group import moved, started_elsewhere
from tests.unit.trainers.test_ppo import Recorder, StopAt, with_reference
from tests.unit.trainers.test_ppo_resume import Kill, KilledError

LOSSES = ("kto", "apo_zero_unpaired")


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Of every pair one good and one bad row; every third pair gives the bad one alone."""
    found = []
    for number, row in enumerate(random_rows(count, seed)):
        if number % 3:
            found.append({"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"], "label": True})
        found.append({"prompt_ids": row["prompt_ids"], "completion_ids": row["rejected_ids"], "label": False})
    return found


def trainer(directory: Path, model: Any = None, callbacks: Any = (), data: Any = None, **more: Any) -> KTOTrainer:
    options = {
        "num_train_epochs": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 3, "max_length": 64, "learning_rate": 5e-3, "save_steps": 2, "logging_steps": 1,
        "save_strategy": "steps", "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 5,
        "dataloader_pin_memory": False, **more,
    }  # fmt: skip
    return KTOTrainer(
        model or tiny_policy(),
        KTOConfig(output_dir=str(directory), **options),
        train_dataset=rows(12) if data is None else data,
        eval_dataset=rows(4, 9),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
    )


def weights_hash(trained: KTOTrainer) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(trained.model.named_parameters()):
        if f".{POLICY}." in name:
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def logp(model: Any, prompt: list[int], completion: list[int], adapters: list[str]) -> torch.Tensor:
    """Of a whole completion, by a plain forward over one row."""
    before = list(model.active_adapters)
    model.base_model.set_adapter(adapters)
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    model.base_model.set_adapter(before)
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum()


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("start", [with_reference, started_elsewhere])
def test_the_loss_is_that_of_the_paper(tmp_path: Path, loss_type: str, start: Any) -> None:
    trained = trainer(
        tmp_path, start(tmp_path), loss_type=loss_type, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5
    )
    moved(trained, by=0.02)
    trained.state.global_step = 1
    batch_rows = rows(12)[2:6]
    model = trained.adapted_model()
    stands = [START] if START in model.peft_config else []

    def ratio(prompt: list[int], completion: list[int]) -> torch.Tensor:
        ours, theirs = (logp(model, prompt, completion, [*stands, name]) for name in (POLICY, COPY))
        return ours - theirs

    prompts, answers = ([row[name] for row in batch_rows] for name in ("prompt_ids", "completion_ids"))
    shift = next(k for k in (1, 2, 3) if all(prompts[i] != prompts[i - k] for i in range(4)))
    others = [ratio(prompts[i], answers[i - shift]) for i in range(4)]
    z = torch.stack(others).mean().clamp(min=0) if loss_type == "kto" else torch.tensor(0.0)
    losses = []
    for row in batch_rows:
        margin = 0.3 * (ratio(row["prompt_ids"], row["completion_ids"]) - z) * (1 if row["label"] else -1)
        losses.append((1.5 if row["label"] else 0.5) * (1 - logsigmoid(margin).exp()))
    trained.model.train()
    batch = trained._prepare_inputs(trained.data_collator(batch_rows))
    found = trained.compute_loss(trained.model, batch)
    assert float(found.detach()) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    if loss_type == "kto":
        assert trained.averages("train")["kto/kl"] == pytest.approx(float(z), abs=1e-4)


def test_mismatched_completions_are_those_of_other_prompts() -> None:
    collate = UnpairedCollator(0, mismatched=True)
    both = [{"prompt_ids": [1, 5 + n // 2], "completion_ids": [10 + n, 2], "label": n % 2 == 0} for n in range(6)]
    batch = collate(both)
    assert batch["KL_input_ids"][:, 2].tolist() == [14, 15, 10, 11, 12, 13]
    assert batch["input_ids"][:, 2].tolist() == [10, 11, 12, 13, 14, 15]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1]] * 6 and batch["label"].tolist() == [True, False] * 3
    assert collate(both[:1])["KL_input_ids"].tolist() == [[1, 5, 10, 2]]
    assert "KL_input_ids" not in UnpairedCollator(0, mismatched=False)(both)


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("start", [None, with_reference, started_elsewhere])
def test_good_rows_become_likelier_and_bad_ones_less_likely(tmp_path: Path, loss_type: str, start: Any) -> None:
    recorder = Recorder()
    model = start(tmp_path) if start else None
    trained = trainer(tmp_path / "run", model, [recorder], loss_type=loss_type, num_train_epochs=6)
    trained.train()
    trained.evaluate()
    last = next(row for row in reversed(recorder.logs) if "kto/margin" in row)
    assert last["kto/desirable_reward"] > 0.05 and last["kto/undesirable_reward"] < -0.05
    assert last["kto/margin"] == last["kto/desirable_reward"] - last["kto/undesirable_reward"]
    assert trained.opening_gap < 1e-4
    logged = {name for row in recorder.logs for name in canonical_metrics(row)}
    assert {"eval/kto/margin", "eval/loss", "kto/entropy"} <= logged and ("kto/kl" in logged) == (loss_type == "kto")
    assert all(describe(name).meaning for name in logged if not name.startswith("train_"))


def test_a_step_is_the_same_however_it_is_cut_into_passes(tmp_path: Path) -> None:
    """But for z, which is estimated for each pass."""
    options = {"loss_type": "apo_zero_unpaired", "max_grad_norm": 1e9, "adam_epsilon": 1e-3, "num_train_epochs": 1}
    runs = []
    for batch, passes in ((8, 1), (1, 8), (4, 2)):
        run = trainer(tmp_path / f"{batch}", with_reference(tmp_path), per_device_train_batch_size=batch,
                      gradient_accumulation_steps=passes, **options)  # fmt: skip
        run.train()
        runs.append(run)
    for other in runs[1:]:
        for (name, a), (_, b) in zip(runs[0].model.named_parameters(), other.model.named_parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-5), name
        ours, theirs = ([row["kto/margin"] for row in run.state.log_history if "kto/margin" in row] for run in
                        (runs[0], other))  # fmt: skip
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_pass_that_is_cut_where_memory_ends_is_the_same_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str
) -> None:
    options = {"loss_type": loss_type, "max_grad_norm": 1e9, "adam_epsilon": 1e-3, "num_train_epochs": 1}
    whole = trainer(tmp_path / "a", with_reference(tmp_path), **options)
    whole.train()
    cut, loss = trainer(tmp_path / "b", with_reference(tmp_path), **options), KTOTrainer.compute_loss

    def tight(self: KTOTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = loss(self, model, inputs, *args, **kwargs)
        if len(inputs["label"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(KTOTrainer, "compute_loss", tight)
    cut.train()
    assert cut.micro_rows == 2
    for (name, a), (_, b) in zip(whole.model.named_parameters(), cut.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    logs = [[row for row in run.state.log_history if "kto/margin" in row] for run in (whole, cut)]
    for ours, theirs in zip(*logs, strict=True):
        for name in ("kto/margin", "kto/entropy", "kto/desirable_logp", "loss"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name


@pytest.mark.parametrize("start", [with_reference, started_elsewhere])
def test_recomputing_activations_changes_nothing(tmp_path: Path, start: Any) -> None:
    recompute = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    runs = [trainer(tmp_path / str(len(more)), start(tmp_path), **more) for more in ({}, recompute)]
    for run in runs:
        run.train()
    for (name, a), (_, b) in zip(*(run.model.named_parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


@pytest.mark.parametrize("start", [with_reference, started_elsewhere])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, start: Any) -> None:
    whole = trainer(tmp_path / "whole", start(tmp_path))
    whole.train()
    with pytest.raises(KilledError):
        trainer(tmp_path / "run", start(tmp_path), [Kill(5)]).train()
    torch.manual_seed(77)
    resumed = trainer(tmp_path / "run", start(tmp_path))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step and weights_hash(resumed) == weights_hash(whole)
    stopped = trainer(tmp_path / "stopped", start(tmp_path), [StopAt(3)])
    stopped.train()
    again = trainer(tmp_path / "stopped", start(tmp_path))
    again.train(resume_from_checkpoint=True)
    assert weights_hash(again) == weights_hash(whole)


def test_text_is_tokenised_and_pairs_give_two_rows(tmp_path: Path) -> None:
    marked = [{"prompt": "the lamp", "completion": "is red", "label": True},
              {"prompt": "the chair", "completion": "is red", "label": 0}]  # fmt: skip
    data = trainer(tmp_path, data=marked).train_dataset
    assert data["label"] == [True, False] and all(ids[-1] == 2 for ids in data["completion_ids"])
    pairs = [{"prompt": "the lamp", "chosen": "is red", "rejected": "is", "probability": p} for p in (1.0, 0.2, 0.5)]
    data = trainer(tmp_path, data=pairs).train_dataset
    assert data["label"] == [True, False, False, True]
    assert data["completion_ids"][0] == data["completion_ids"][2] != data["completion_ids"][1]
    with pytest.raises(DataError, match="0 of 1 rows"):
        trainer(tmp_path, data=[{**pairs[2]}])
    with pytest.raises(DataError, match="no rows"):
        trainer(tmp_path, data=[])


def test_a_pass_of_one_row_is_refused_where_it_would_know_no_distance(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other rows of a pass"):
        trainer(tmp_path, per_device_train_batch_size=1)
    trainer(tmp_path, per_device_train_batch_size=1, loss_type="apo_zero_unpaired")


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights", "wanted"),
    [
        (30, 30, (1.0, 1.0), None),
        (40, 30, (1.0, 1.0), None),
        (41, 30, (1.0, 1.0), 0.854),
        (10, 30, (1.0, 1.0), 3.5),
        (10, 30, (3.0, 1.0), None),
        (10, 30, (1.0, 0.3), None),
    ],
)
def test_weights_that_do_not_balance_are_told(desirable: int, undesirable: int, weights: Any, wanted: Any) -> None:
    said = imbalance(desirable, undesirable, *weights)
    assert (said is None) == (wanted is None)
    if said:
        weight = float(said.rpartition("desirable_weight: ")[2].rstrip("`"))
        assert weight == pytest.approx(wanted, abs=1e-3)
        assert imbalance(desirable, undesirable, weight, weights[1]) is None


def test_one_side_alone_is_told() -> None:
    assert "no undesirable row" in str(imbalance(3, 0, 1, 1)) and "no desirable row" in str(imbalance(0, 3, 1, 1))
