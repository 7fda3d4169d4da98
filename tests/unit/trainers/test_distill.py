"""The trainer of distillation: what it learns, in which direction, and that it can be cut, killed and guarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import TrainerCallback

from prefopt.errors import DataError, InputError
from prefopt.losses.distill import Target
from prefopt.models.distill_policy import DistillPolicy, Teacher
from prefopt.models.generate import SamplingOptions
from prefopt.models.roles import POLICY, TEACHER
from prefopt.tracking.metrics import describe
from prefopt.trainers.callbacks import canonical_metrics
from prefopt.trainers.collapse import CollapseLimits, Look
from prefopt.trainers.distill import DistillTrainer
from prefopt.trainers.distill_config import DistillConfig
from prefopt.trainers.distill_rows import DistillCollator
from tests.tiny import random_rows, tiny_llama, tiny_policy, tiny_tokenizer
from tests.unit.trainers.four import COMMON, adapted, difference, trained

CONTEXT = [7, 9, 11, 13, 17]
QUIET = CollapseLimits(None, None, every=1000, prompts=2)


def rows(count: int, *, soft: bool = True, context: list[int] | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The teacher reads some more tokens at the start of its prompt."""
    found = []
    for row in random_rows(count, seed):
        bos, *rest = row["prompt_ids"]
        teacher = [bos, *(CONTEXT if context is None else context), *rest]
        found.append(
            {"prompt_ids": row["prompt_ids"], "teacher_prompt_ids": teacher, "completion_ids": row["chosen_ids"],
             "soft": soft}
        )  # fmt: skip
    return found


def trainer(
    folder: Path,
    model: Any = None,
    kind: type[DistillTrainer] = DistillTrainer,
    given: list[dict[str, Any]] | None = None,
    callbacks: list[Any] = [],  # noqa: B006
    held_out: list[dict[str, Any]] | None = None,
    real: list[dict[str, Any]] = [],  # noqa: B006
    teacher: Teacher = Teacher(),
    origin: Look | None = None,
    **options: Any,
) -> DistillTrainer:
    fields = {**COMMON, "output_dir": str(folder), "max_new_tokens": 6, "guards": QUIET, "optim": "adamw_torch",
              "learning_rate": 3e-3, "max_steps": 20, **options}  # fmt: skip
    return kind(
        model or tiny_policy(), DistillConfig(**fields), train_dataset=given or rows(16), eval_dataset=held_out,
        real_dataset=real, teacher=teacher, origin=origin, processing_class=tiny_tokenizer(), callbacks=callbacks,
    )  # fmt: skip


class Logs(TrainerCallback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.rows.append({"step": state.global_step, **(logs or {})})


class SwappedSign(DistillTrainer):
    """What must not be done: minimises log Pr instead of maximising it, and raises the divergence."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return -super().compute_loss(*args, **kwargs)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [Target(), Target(top_k=5), Target("reverse")])
@pytest.mark.parametrize("start", ["base", "adapter"])
def test_the_same_context_gives_no_gradient(target: Target, start: str) -> None:
    peft = (tiny_policy() if start == "base" else adapted(tiny_llama(), POLICY)).double()
    policy = DistillPolicy(peft)
    same, rich = (DistillCollator(0)(rows(6, context=context)) for context in ([], CONTEXT))
    sizes = []
    for batch in (same, rich):
        policy.zero_grad()
        found = policy(batch["student"], batch["teacher"], batch["soft"], target=target)
        found.losses.mean().backward()
        sizes.append(max(float(p.grad.abs().max()) for p in policy.parameters() if p.grad is not None))
    assert sizes[0] < 1e-13 and sizes[1] > 1e-4
    assert [name for name, p in policy.named_parameters() if p.grad is not None and f".{POLICY}." not in name] == []


def by_hand(model: Any, ids: list[int], prompt: int) -> Tensor:
    """Log-probabilities of every next token of the completion."""
    return model(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1].log_softmax(-1)


def test_a_batch_is_its_rows_one_by_one() -> None:
    peft = adapted(tiny_llama(), POLICY).double()
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if f"lora_B.{POLICY}" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    policy, data = DistillPolicy(peft).eval(), rows(5)
    batch = DistillCollator(0)(data)
    found = policy(batch["student"], batch["teacher"], batch["soft"])
    expected = []
    for row in data:
        with policy.active("start"):
            full = [*row["teacher_prompt_ids"], *row["completion_ids"]]
            teacher = by_hand(peft, full, len(row["teacher_prompt_ids"]))
        student = by_hand(peft, [*row["prompt_ids"], *row["completion_ids"]], len(row["prompt_ids"]))
        expected.append((teacher.exp() * (teacher - student)).sum(1))
    assert torch.allclose(found.losses, torch.cat(expected), atol=1e-10) and float(found.losses.detach().min()) > 1e-4


# -- what is learned ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DistillTrainer, SwappedSign])
def test_training_lowers_the_divergence_and_with_the_sign_swapped_raises_it(tmp_path: Path, kind: Any) -> None:
    made = trainer(tmp_path, kind=kind, real=rows(6, context=[], seed=4), held_out=rows(8, seed=9))
    before = made.measure(rows(8))["kl"]
    made.train()
    after = made.measure(rows(8))["kl"]
    assert after < 0.6 * before if kind is DistillTrainer else after > 1.3 * before


@pytest.mark.parametrize("kind", [DistillTrainer, SwappedSign])
def test_hard_targets_become_likelier_and_with_the_sign_swapped_less_likely(tmp_path: Path, kind: Any) -> None:
    data = rows(8, soft=False)
    made = trainer(tmp_path, kind=kind, given=data, max_steps=10)
    before = made.measure(data)["nll"]
    made.train()
    after = made.measure(data)["nll"]
    assert after < before - 0.2 if kind is DistillTrainer else after > before + 0.2


def teacher_of(who: str) -> tuple[PeftModel, Teacher]:
    peft = adapted(tiny_llama(), POLICY) if who != "start" else tiny_policy()
    if who == "adapter":
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False
        )
        peft.add_adapter(TEACHER, lora)
        peft.set_adapter(POLICY)
    return peft, Teacher(who, tiny_llama(seed=3) if who == "model" else None)


@pytest.mark.parametrize("who", ["start", "adapter", "base", "model"])
def test_the_student_comes_nearer_to_any_teacher_which_stays_as_it_is(tmp_path: Path, who: str) -> None:
    peft, teacher = teacher_of(who)
    frozen = {name: p.detach().clone() for name, p in peft.named_parameters() if not p.requires_grad}
    made = trainer(tmp_path, peft, teacher=teacher, given=rows(8), max_steps=12)
    before = made.measure(rows(8))["kl"]
    made.train()
    assert made.measure(rows(8))["kl"] < 0.95 * before
    assert all(torch.equal(p, frozen[name]) for name, p in peft.named_parameters() if name in frozen)


def test_on_policy_the_student_is_compared_along_its_own_answers(tmp_path: Path) -> None:
    data = [{name: row[name] for name in ("prompt_ids", "teacher_prompt_ids")} for row in rows(8)]
    real = [{**row, "replay": True, "soft": False} for row in rows(4, context=[], seed=3)]
    logs = Logs()
    made = trainer(tmp_path, given=[*data, *real], on_policy=True, divergence="reverse", callbacks=[logs],
                   per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=40,
                   learning_rate=1e-2)  # fmt: skip
    options = SamplingOptions(6)
    prompts = [row["prompt_ids"] for row in data] * 4
    uniforms = torch.rand(len(prompts), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def own_divergence() -> float:
        answers = made.answers(prompts, options, uniforms)
        answered = [{**row, "completion_ids": each.ids} for row, each in zip(data * 4, answers, strict=True)]
        batch = DistillCollator(0)(answered)
        with torch.no_grad():
            found = made.model(batch["student"], batch["teacher"], batch["soft"], target=Target("reverse"))
        return float(found.losses.mean())

    before = own_divergence()
    made.train()
    assert own_divergence() < 0.8 * before
    kept = [row for row in logs.rows if "distill/replay_loss" in row]
    assert kept[-1]["distill/replay_loss"] < kept[0]["distill/replay_loss"]
    assert made.state.num_input_tokens_seen > 0


def test_what_is_logged_is_explained_and_right(tmp_path: Path) -> None:
    logs = Logs()
    limits = CollapseLimits(every=2, prompts=4)
    made = trainer(tmp_path, given=rows(8), held_out=rows(6, seed=9), real=rows(6, context=[], seed=4), guards=limits,
                   callbacks=[logs], max_steps=3, learning_rate=1e-9, logging_steps=1)  # fmt: skip
    made.train()
    found = made.evaluate()
    named = {name for row in logs.rows for name in canonical_metrics(row)}
    assert {"distill/kl", "distill/agreement", "eval/distill/kl", "distill/own_entropy", "distill/drift"} <= named
    assert all(describe(name).meaning for name in named if "/" in name and not name.startswith("train_"))
    measured = made.measure(rows(6, seed=9))
    assert found["eval_loss"] == pytest.approx(measured["kl"], rel=1e-5)
    assert found["eval_distill/kl"] == pytest.approx(measured["kl"], rel=1e-5)
    assert found["eval_distill/agreement"] == pytest.approx(measured["agreement"], rel=1e-5)
    first = next(row for row in logs.rows if "distill/kl" in row)
    assert first["distill/kl"] == pytest.approx(first["loss"], rel=1e-4)
    looks = [row["step"] for row in logs.rows if "distill/own_entropy" in row]
    assert looks == [2, 3]
    drift = next(row["distill/drift"] for row in logs.rows if "distill/drift" in row)
    assert abs(drift) < 1e-6


# -- rows and steps ----------------------------------------------------------------------------------------------------


def test_a_step_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    options = {"max_grad_norm": 1e9, "optim": "sgd", "learning_rate": 0.5, "max_steps": 2}
    mixed = [{**row, "weight": 0.5 + n % 3, "soft": n % 2 == 0, "replay": n % 5 == 0} for n, row in enumerate(rows(16))]
    runs = []
    for batch, passes in ((8, 1), (1, 8), (4, 2)):
        made = trainer(tmp_path / f"{batch}", adapted(tiny_llama(), POLICY), given=mixed,
                       per_device_train_batch_size=batch, gradient_accumulation_steps=passes, **options)  # fmt: skip
        start = trained(made.model)
        made.train()
        runs.append(trained(made.model))
    assert difference(start, runs[0]) > 1e-3
    assert max(difference(run, runs[0]) for run in runs) < 1e-5


def test_a_pass_that_does_not_fit_is_cut_and_gives_the_same(tmp_path: Path) -> None:
    """Also where teacher and student happen to be padded to the same width, and need different cuts."""
    data = rows(8)
    data[0]["teacher_prompt_ids"] = data[0]["prompt_ids"]
    whole, cut = (trainer(tmp_path / name, given=data, max_steps=2, optim="sgd", learning_rate=0.5) for name in "ab")
    cut.micro_rows = 3
    whole.train()
    cut.train()
    assert difference(trained(cut.model), trained(whole.model)) < 1e-5


def test_text_is_tokenised_with_both_prompts(tmp_path: Path) -> None:
    data = [{"prompt": "the lamp", "teacher_prompt": "be brief: the lamp", "completion": "is red"}] * 2
    made = trainer(tmp_path, given=data)
    (row, _) = made.train_dataset
    assert len(row["teacher_prompt_ids"]) > len(row["prompt_ids"])
    assert row["completion_ids"][-1] == made.processing_class.eos_token_id
    with pytest.raises(DataError, match="has no completion"):
        trainer(tmp_path, given=[{"prompt": "the lamp"}])
    with pytest.raises(DataError, match="0 of 1 rows fit"):
        trainer(tmp_path, given=[{"prompt": "the lamp", "completion": "is red " * 50}], max_length=16)
    with pytest.raises(InputError, match="sideways"):
        trainer(tmp_path, divergence="sideways")


def test_a_student_that_is_not_its_start_is_refused(tmp_path: Path) -> None:
    peft = adapted(tiny_llama(), POLICY)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if f"lora_B.{POLICY}" in name:
                parameter.add_(0.1)
    with pytest.raises(InputError, match="before the first step"):
        trainer(tmp_path, peft).train()


# -- resume ------------------------------------------------------------------------------------------------------------


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


@pytest.mark.parametrize("on_policy", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, on_policy: bool) -> None:
    data = rows(12)
    if on_policy:
        data = [{name: row[name] for name in ("prompt_ids", "teacher_prompt_ids")} for row in data[:9]] + data[9:]
    options = {"given": data, "on_policy": on_policy, "per_device_train_batch_size": 4, "max_steps": 7,
               "save_strategy": "steps", "save_steps": 2, "real": rows(4, context=[], seed=4),
               "guards": CollapseLimits(None, None, every=3, prompts=3)}  # fmt: skip
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    trainer(tmp_path / "cut", callbacks=[StopAt(5)], **options).train()
    resumed = trainer(tmp_path / "cut", **options)
    assert resumed.resumable().name == "checkpoint-4"
    resumed.train(resume_from_checkpoint=True)
    ours, theirs = trained(resumed.model), trained(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.guard.origin == whole.guard.origin
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen
