"""grpo and rloo as wholes: what TRL learns of a rollout, what it is paid for, that it learns, and its resume."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from prefopt.errors import DataError, EnvironmentFault, InputError, TrainingDiverged
from prefopt.models.roles import COPY, POLICY, START, policy_on, save_adapter
from prefopt.recipe.schema import LoraSpec
from prefopt.records import Score
from prefopt.store.checkpoints import checkpoints
from prefopt.tracking.metrics import describe
from prefopt.trainers.group import GroupTrainer, without_padding
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from tests.tiny import tiny_llama, tiny_policy, tiny_tokenizer
from tests.unit.trainers.priced import penalties
from tests.unit.trainers.test_ppo import PROMPTS, Recorder, StopAt, many_the, with_reference
from tests.unit.trainers.test_ppo import config as ppo_config
from tests.unit.trainers.test_ppo_resume import Kill, KilledError

KINDS = ("grpo", "rloo")
_CLASSES = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


def trainer(
    kind: str,
    directory: Path,
    model: Any = None,
    reward: Any = many_the,
    callbacks: Any = (),
    penalties: Any = (),
    **more: Any,
) -> GroupTrainer:
    config, build = _CLASSES[kind]
    options = {
        "total_episodes": 48, "rollout_batch_size": 16, "num_generations": 4, "num_iterations": 2,
        "num_mini_batches": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 8,
        "max_completion_length": 6, "max_length": 64, "learning_rate": 5e-3, "save_steps": 4, "logging_steps": 1,
        "save_strategy": "steps", "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 5,
        "dataloader_pin_memory": False, **more,
    }  # fmt: skip
    return build(
        model or tiny_policy(),
        config(output_dir=str(directory), **options),
        reward=reward,
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
        penalties=penalties,
        callbacks=list(callbacks),
    )


def disputed(prompts: Any, completions: Any) -> list[Score]:
    return [Score(float(text.count("e")), std=0.1 * (1 + len(text) % 3)) for text in completions]


def started_elsewhere(folder: Path) -> PeftModel:
    """A policy of another shape than the adapter that it stands on."""
    with_reference(folder)
    shape = LoraSpec(lora_r=3, lora_alpha=4.0, lora_target_modules=("q_proj", "v_proj"))
    return policy_on(tiny_llama(), shape, folder / "init", reference=False, reshape=True)


def moved(trained: GroupTrainer, by: float = 0.05) -> None:
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            if f"lora_B.{POLICY}" in name:
                parameter.add_(by)


def logps_of(model: PeftModel, batch: dict[str, torch.Tensor], adapters: list[str]) -> torch.Tensor:
    """By a plain forward, [n, L], 0 on padding."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    before = list(model.active_adapters)
    model.base_model.set_adapter(adapters)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0)).logits
    model.base_model.set_adapter(before)
    width = batch["completion_ids"].shape[1]
    said = logits[:, -width - 1 : -1].log_softmax(-1).gather(2, batch["completion_ids"][:, :, None]).squeeze(2)
    return said * batch["completion_mask"]


def collected(trained: GroupTrainer) -> dict[str, torch.Tensor]:
    trained.model.train()
    batch = trained._generate_and_score_completions(None)
    return {name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def weights_hash(trained: GroupTrainer) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(trained.model.named_parameters()):
        if f".{POLICY}." in name:
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


# -- what is learned from ----------------------------------------------------------------------------------------------


def test_the_advantage_of_rloo_is_what_is_earned_above_the_others_with_the_price_of_the_kl(tmp_path: Path) -> None:
    trained = trainer("rloo", tmp_path, with_reference(tmp_path), beta=0.3, normalise="none", missing_eos_penalty=0.5)
    trained.state.global_step = 4  # the second rollout: the policy may have left its reference
    moved(trained)
    batch = collected(trained)
    model = trained.adapted_model()
    kl = (logps_of(model, batch, [POLICY]) - logps_of(model, batch, [COPY])).sum(1)
    assert kl.abs().max() > 1e-2
    raw = torch.tensor([row["reward"] - 0.5 * (not row["finished"]) for row in trained.latest])
    earned = (raw - 0.3 * kl).view(-1, 4)
    others = (earned.sum(1, keepdim=True) - earned) / 3
    assert torch.allclose(batch["advantages"], (earned - others).flatten(), atol=1e-4)
    assert torch.allclose(torch.tensor([row["kl"] for row in trained.latest]), kl, atol=1e-4)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_advantage_of_grpo_is_what_is_earned_against_the_group(tmp_path: Path, scale: str) -> None:
    trained = trainer("grpo", tmp_path, scale_rewards=scale, normalise="none", missing_eos_penalty=0.0)
    batch = collected(trained)
    earned = torch.tensor([row["reward"] for row in trained.latest]).view(-1, 4)
    apart = earned - earned.mean(1, keepdim=True)
    wanted = apart / (earned.std(1, keepdim=True) + 1e-4) if scale == "group" else apart
    assert torch.allclose(batch["advantages"], wanted.flatten(), atol=1e-5) and apart.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", ["reference", "running", "batch", "none"])
def test_rewards_are_those_that_ppo_gives_the_same_completions(tmp_path: Path, kind: str, normalise: str) -> None:
    same = {"normalise": normalise, "reward_clip": 0.9, "missing_eos_penalty": 0.7, "temperature": 0.8}
    ppo = PPOTrainer(
        tiny_policy(), ppo_config(tmp_path / "ppo", samples_per_prompt=4, **same), reward=disputed,
        train_dataset=PROMPTS, processing_class=tiny_tokenizer(), penalties=penalties(),
    )  # fmt: skip
    group = trainer(kind, tmp_path / kind, reward=disputed, penalties=penalties(), **same)
    if normalise in ("reference", "running"):
        ppo._normalise_by_reference()
        group._normalise_by_reference()
    for number in (0, 1):
        group.state.global_step = number * group.args.steps_per_rollout
        rollout, _ = ppo.collect_rollout(number), collected(group)
        assert [each.text for each in rollout.samples] == [row["completion"] for row in group.latest]
        ppo.shaper.update(rollout.shaped)
        assert torch.equal(rollout.shaped.total, group._shaped.total)
        assert {"length", "banned"} <= rollout.shaped.terms.keys() == group._shaped.terms.keys()
    assert group.shaper.state_dict() == ppo.shaper.state_dict()
    assert group.scale.state_dict() == ppo.scale.state_dict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [None, with_reference, started_elsewhere])
def test_the_reference_is_what_the_policy_started_from(tmp_path: Path, kind: str, start: Any) -> None:
    model = start(tmp_path) if start else None
    trained = trainer(kind, tmp_path / "run", model, num_iterations=1, num_mini_batches=1)
    before = weights_hash(trained)
    trained.train()
    assert trained.opening_gap < 1e-4 and weights_hash(trained) != before
    trained.state.global_step = 2
    batch = collected(trained)
    model = trained.adapted_model()
    stands = [START] if START in model.peft_config else []
    assert list(model.active_adapters) == [*stands, POLICY]
    assert {name.split(".")[-2] for name, each in model.named_parameters() if each.requires_grad} == {POLICY}
    policy, reference = logps_of(model, batch, [*stands, POLICY]), logps_of(model, batch, [*stands, COPY])
    assert (policy - reference).abs().max() > 1e-3
    if start is None:
        with model.disable_adapter():
            assert torch.allclose(logps_of(model, batch, [POLICY]), reference, atol=1e-5)
    assert torch.allclose(trained._asked[COPY] * batch["completion_mask"], reference, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_price_the_distance_is_still_measured(tmp_path: Path, kind: str) -> None:
    trained = trainer(kind, tmp_path, with_reference(tmp_path), beta=0.0, num_iterations=1, num_mini_batches=1)
    trained.train()
    kl = [row[f"{kind}/kl"] for row in trained.state.log_history if f"{kind}/kl" in row]
    assert abs(kl[0]) < 1e-4 < max(kl)


def test_nothing_is_learned_from_completions_that_were_cut(tmp_path: Path) -> None:
    trained = trainer("rloo", tmp_path, mask_truncated_completions=True, max_completion_length=40)
    batch = collected(trained)
    finished = torch.tensor([row["finished"] for row in trained.latest])
    assert 0 < int(finished.sum()) < len(finished)
    assert torch.equal(batch["completion_mask"].any(1), finished)
    found = without_padding(batch)
    assert found["completion_mask"].any(0)[-1] and found["prompt_mask"].any(0)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_rise(tmp_path: Path, kind: str) -> None:
    trained = trainer(kind, tmp_path, total_episodes=64 * 24, rollout_batch_size=64, num_generations=8, beta=0.01,
                      per_device_train_batch_size=32, num_mini_batches=2, num_iterations=2, learning_rate=2e-2,
                      save_strategy="no", per_device_eval_batch_size=64)  # fmt: skip
    trained.train()
    scores = [row[f"{kind}/score"] for row in trained.state.log_history if f"{kind}/score" in row]
    assert len(scores) == 24 and sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 1


# -- the step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more"),
    [("rloo", {}), *(("grpo", {"loss_type": name}) for name in ("dapo", "grpo", "dr_grpo", "bnpo"))],
)
def test_a_pass_that_is_cut_where_memory_ends_is_the_same_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, more: Any
) -> None:
    options = {"rollout_batch_size": 16, "total_episodes": 16, "per_device_train_batch_size": 8, "normalise": "none",
               "num_iterations": 1, "max_grad_norm": 1e9, "max_completion_length": 40, "adam_epsilon": 1e-2,
               "mask_truncated_completions": True, **more}  # fmt: skip
    whole = trainer(kind, tmp_path / "a", with_reference(tmp_path), **options)
    whole.train()
    cut = trainer(kind, tmp_path / "b", with_reference(tmp_path), **options)
    room, loss = 3, type(cut).compute_loss

    def tight(self: GroupTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = loss(self, model, inputs, *args, **kwargs)
        if len(inputs["prompt_ids"]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(type(cut), "compute_loss", tight)
    cut.train()
    assert cut.micro_rows == 2 and cut._step == whole._step
    for (name, a), (_, b) in zip(whole.model.named_parameters(), cut.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    clipped = [[row[f"{kind}/clip_fraction"] for row in t.state.log_history if f"{kind}/clip_fraction" in row]
               for t in (whole, cut)]  # fmt: skip
    assert clipped[0] == pytest.approx(clipped[1], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [with_reference, started_elsewhere])
def test_recomputing_activations_changes_nothing(tmp_path: Path, kind: str, start: Any) -> None:
    recompute = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    runs = [trainer(kind, tmp_path / str(len(more)), start(tmp_path), **more) for more in ({}, recompute)]
    for run in runs:
        run.train()
    for (name, a), (_, b) in zip(*(run.model.named_parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_not_even_one_row_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: GroupTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trained = trainer("grpo", tmp_path)
    monkeypatch.setattr(GroupTrainer, "compute_loss", full)
    with pytest.raises(EnvironmentFault, match="single row"):
        trained.train()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_that_explodes_stops_the_run(tmp_path: Path, kind: str) -> None:
    trained = trainer(kind, tmp_path, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(TrainingDiverged):
        trained.train()


# -- the frame ---------------------------------------------------------------------------------------------------------


def state(trained: GroupTrainer) -> str:
    kept = [trained.scale.state_dict(), trained.shaper.state_dict(), trained.latest, weights_hash(trained)]
    return json.dumps(kept, sort_keys=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [with_reference, started_elsewhere])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, kind: str, start: Any) -> None:
    options = {"normalise": "running", "reward_clip": 2.0, "save_steps": 1, "save_total_limit": None}
    options |= {"reward": disputed}
    whole = trainer(kind, tmp_path / "whole", start(tmp_path), penalties=penalties(), **options)
    whole.train()
    steps = whole.args.steps_per_rollout
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path / "whole")] == [steps, 2 * steps, 3 * steps]
    with pytest.raises(KilledError):
        trainer(
            kind, tmp_path / "run", start(tmp_path), callbacks=[Kill(2 * steps + 1)], penalties=penalties(), **options
        ).train()
    torch.manual_seed(77)
    resumed = trainer(kind, tmp_path / "run", start(tmp_path), penalties=penalties(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3 * steps and state(resumed) == state(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_waits_for_the_end_of_a_rollout(tmp_path: Path, kind: str) -> None:
    trained = trainer(kind, tmp_path, callbacks=[StopAt(5)])
    trained.train()
    assert trained.state.global_step == 8
    done = trainer(kind, tmp_path)
    done.train(resume_from_checkpoint=True)
    assert done.state.global_step == 12 and done.state.num_input_tokens_seen > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged_has_a_meaning_and_what_trl_calls_it_is_gone(tmp_path: Path, kind: str) -> None:
    recorder = Recorder()
    trained = trainer(kind, tmp_path, reward=disputed, callbacks=[recorder], logging_steps=4)
    trained.train()
    names = {name for row in recorder.logs for name in row if "/" in name}
    assert names >= {
        f"{kind}/{name}" for name in ("score", "reward", "kl", "tie_rate", "clip_fraction", "disagreement")
    }
    assert all(describe(name).meaning for name in names)
    assert [row[f"{kind}/episodes"] for row in recorder.logs if f"{kind}/episodes" in row] == [16, 32, 48]
    first = recorder.logs[0]
    raw = sum(row["tokens"] for row in trained.latest) / len(trained.latest)
    assert recorder.logs[2][f"{kind}/length"] == pytest.approx(raw)
    assert 0.1 <= first[f"{kind}/disagreement"] <= 0.3 and 0 <= first[f"{kind}/tie_rate"] <= 1


def test_saved_adapters_are_those_of_every_other_stage(tmp_path: Path) -> None:
    trained = trainer("grpo", tmp_path, with_reference(tmp_path))
    trained.train()
    save_adapter(trained.adapted_model(), POLICY, tmp_path / "ours", "tiny")
    theirs, ours = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("init", "ours"))
    assert ours == theirs
    checkpoint = checkpoints(tmp_path)[-1]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in checkpoint.iterdir()}
    assert not (checkpoint / COPY).exists() and not (checkpoint / "README.md").exists()


def test_an_adapter_on_the_head_is_refused(tmp_path: Path) -> None:
    shape = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "lm_head"])
    base = tiny_llama()
    base.config.tie_word_embeddings = False
    model = get_peft_model(base, shape, adapter_name=POLICY)
    with pytest.raises(InputError, match="head") as caught:
        trainer("rloo", tmp_path, model)
    assert "lm_head" in caught.value.remedy


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"num_generations": 3}, "whole prompts"),
        ({"num_mini_batches": 3}, "cut into 3 minibatches"),
        ({"per_device_train_batch_size": 3}, "passes of 3"),
    ],
)
def test_sizes_must_divide_each_other(tmp_path: Path, more: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        trainer("grpo", tmp_path, **more)


def test_steps_follow_from_episodes(tmp_path: Path) -> None:
    args = trainer("rloo", tmp_path, total_episodes=40, num_mini_batches=4, num_iterations=3).args
    assert (args.steps_per_rollout, args.max_steps, args.gradient_accumulation_steps) == (12, 36, 1)
    assert args.steps_per_generation == 4 and args.generation_batch_size == 16
    assert {field.name for field in fields(args)} > {"beta", "normalise", "num_generations"}


def test_there_must_be_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompts"):
        GRPOTrainer(
            tiny_policy(), trainer("grpo", tmp_path).args, reward=many_the, train_dataset=[],
            processing_class=tiny_tokenizer(),
        )  # fmt: skip


class Moves(TrainerCallback):
    """Changes the policy before the first step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if f"lora_B.{POLICY}" in name:
                    parameter.add_(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_is_not_its_reference_is_not_trained(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="differs from the reference"):
        trainer(kind, tmp_path, with_reference(tmp_path), callbacks=[Moves()]).train()


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_is_refused_before_it_moves_anything(tmp_path: Path, kind: str) -> None:
    trained = trainer(kind, tmp_path, penalties=penalties(), reward=disputed)
    before = json.dumps([trained.shaper.state_dict(), trained.scale.state_dict()])
    for rows in (None, trained.train_dataset):
        with pytest.raises(InputError, match="does not evaluate"):
            trained.evaluate(rows)
    assert json.dumps([trained.shaper.state_dict(), trained.scale.state_dict()]) == before
