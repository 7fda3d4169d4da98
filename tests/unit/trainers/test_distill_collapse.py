"""What keeps a student from collapsing, and soft prompts on a frozen model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model

from prefopt.errors import IntegrityError
from prefopt.models.distill_policy import DistillPolicy
from prefopt.models.generate import SamplingOptions, sample
from prefopt.models.roles import POLICY, REFERENCE, activate_trained, adapter_of, load_adapter_tensors
from prefopt.models.soft_prompt import sample_from
from prefopt.trainers.collapse import CollapseLimits, Look, collapse
from prefopt.trainers.distill_rows import DistillCollator
from tests.tiny import random_rows, tiny_llama, tiny_policy, tiny_tokenizer
from tests.unit.trainers.test_distill import rows, trainer


def test_limits_say_what_is_wrong() -> None:
    origin, limits = Look(2.0, 3.0), CollapseLimits()
    assert collapse(origin, Look(1.5, 3.2), limits) is None
    assert "entropy 1.3 is below 0.7 of 2" in str(collapse(origin, Look(1.3, 3.0), limits))
    assert "loss 3.4 is above 1.1 of 3" in str(collapse(origin, Look(2.0, 3.4), limits))
    assert collapse(origin, Look(0.1, 9.0), CollapseLimits(None, None)) is None
    assert collapse(Look(2.0), Look(2.0, 9.0), limits) is None
    assert Look.from_json(origin.to_json()) == origin


def self_training(folder: Path, rounds: int, *, soft: bool) -> list[tuple[str | None, int]]:
    """Rounds in which a model learns from its own likeliest answers: why each ended, and after how many steps."""
    peft = tiny_policy()
    with torch.no_grad():  # as decided as a trained model: logits of a small random one are all about 0
        peft.get_output_embeddings().weight.mul_(3)
    prompts = [row["prompt_ids"] for row in random_rows(24)]
    real = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in random_rows(12, 5)]
    origin, found = None, []
    for number in range(rounds):
        answers = sample(peft, tiny_tokenizer(), prompts, SamplingOptions(12, temperature=0.0))
        data = [
            {"prompt_ids": prompt, "completion_ids": list(answer.ids), "soft": soft}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        if number:  # the student of the round before is a frozen reference beside the one that is trained
            if number == 1:
                peft.add_adapter(REFERENCE, peft.peft_config[POLICY])
            load_adapter_tensors(peft, REFERENCE, adapter_of(peft, POLICY).tensors)
            activate_trained(peft, POLICY)
        made = trainer(
            folder / str(number), peft, given=data, real=real, origin=origin, max_new_tokens=12, learning_rate=3e-2,
            max_steps=30, guards=CollapseLimits(every=5, prompts=16), held_out=data[:16],
        )  # fmt: skip
        made.train()
        assert made.guard is not None
        origin = made.guard.origin
        found.append((made.guard.reason, made.state.global_step))
    return found


def test_the_guards_speak_up_within_two_rounds_of_learning_from_the_likeliest_answers(tmp_path: Path) -> None:
    found = self_training(tmp_path / "argmax", 2, soft=False)
    assert any(reason and reason.startswith("entropy") and steps < 30 for reason, steps in found)
    # The same answers with the whole distribution as target leave nothing to be learned.
    assert self_training(tmp_path / "soft", 2, soft=True) == [(None, 30), (None, 30)]


def test_a_guard_that_speaks_up_leaves_no_checkpoint_behind_it(tmp_path: Path) -> None:
    origin = Look(100.0)  # nothing is so undecided
    options = {"origin": origin, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    stopped = trainer(tmp_path / "stop", guards=CollapseLimits(every=3, prompts=2), **options)
    stopped.train()
    assert stopped.state.global_step == 3 and stopped.resumable().name == "checkpoint-2"
    assert stopped.guard.reason.endswith("at step 3")
    again = trainer(tmp_path / "stop", guards=CollapseLimits(every=3, prompts=2), **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3 and again.guard.reason == stopped.guard.reason
    warned = trainer(tmp_path / "warn", guards=CollapseLimits(every=3, prompts=2, stop=False), **options)
    warned.train()
    assert warned.state.global_step == 6 and warned.guard.reason == stopped.guard.reason
    # A run that was only warned is resumed after its last look, and still knows.
    resumed = trainer(tmp_path / "warn", guards=CollapseLimits(every=3, prompts=2, stop=False), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6 and resumed.guard.reason == warned.guard.reason


# -- soft prompts ------------------------------------------------------------------------------------------------------


def soft_prompt(vectors: int = 4) -> PeftModel:
    base = tiny_llama()
    torch.manual_seed(1)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=vectors)
    return get_peft_model(base, config, adapter_name=POLICY)


def test_a_soft_prompt_learns_the_context_and_the_model_stays(tmp_path: Path) -> None:
    peft = soft_prompt()
    made = trainer(tmp_path, peft, learning_rate=0.05, max_steps=25, save_strategy="steps", save_steps=25)
    assert [name for name, p in peft.named_parameters() if p.requires_grad] == [
        f"prompt_encoder.{POLICY}.embedding.weight"
    ]
    base = {name: p.detach().clone() for name, p in peft.get_base_model().named_parameters()}
    before = made.measure(rows(16))["kl"]
    made.train()
    after = made.measure(rows(16))["kl"]
    assert after < 0.7 * before
    assert all(torch.equal(p, base[name]) for name, p in peft.get_base_model().named_parameters())
    again = trainer(tmp_path / "other", soft_prompt())
    with pytest.raises(IntegrityError, match="does not hold the soft prompt"):
        load_adapter_tensors(again.model.peft, POLICY, {"other": torch.zeros(1)})
    again.load_weights(tmp_path / "checkpoint-25")
    assert again.measure(rows(16))["kl"] == pytest.approx(after, rel=1e-6)


def test_sampling_with_a_soft_prompt_is_what_the_policy_says(tmp_path: Path) -> None:
    policy = DistillPolicy(soft_prompt(3)).eval()
    prompts = [row["prompt_ids"] for row in random_rows(5)]
    found = sample_from(policy, tiny_tokenizer(), prompts, SamplingOptions(6, temperature=0.0), None, None)
    without = sample_from(policy, tiny_tokenizer(), prompts, SamplingOptions(6, temperature=0.0), None, "start")
    plain = sample(tiny_llama(), tiny_tokenizer(), prompts, SamplingOptions(6, temperature=0.0))
    assert [each.ids for each in without] == [each.ids for each in plain] != [each.ids for each in found]
    for prompt, answer in zip(prompts, found, strict=True):
        row = {"prompt_ids": prompt, "teacher_prompt_ids": prompt, "completion_ids": answer.ids}
        batch = DistillCollator(0)([row])
        states = policy._student_states(batch["student"])
        head = policy.peft.get_base_model().get_output_embeddings()
        assert tuple(head(states).argmax(-1).tolist()) == answer.ids
