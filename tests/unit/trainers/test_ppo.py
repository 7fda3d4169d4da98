"""PPO as a whole: its invariants, its resume, and that it learns."""

import hashlib
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import RobertaConfig, RobertaForCausalLM, TrainerCallback

from prefopt.errors import DataError, InputError
from prefopt.losses.ppo import kl_tokens, masked_mean
from prefopt.models.actor_critic import ActorCritic, Ask, actor_critic
from prefopt.models.roles import POLICY, REFERENCE, save_adapter
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.ppo_metrics import averages, close_ups, health
from tests.tiny import tiny_llama, tiny_policy, tiny_tokenizer

PROMPTS = [{"prompt": text} for text in ("the lamp", "the chair costs", "is", "nine euro", "red lamp is the")]


def config(directory: Path, **more) -> PPOConfig:
    fields = {
        "total_episodes": 48,
        "rollout_batch_size": 16,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_new_tokens": 6,
        "max_length": 64,
        "learning_rate": 5e-3,
        "save_steps": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    return PPOConfig(output_dir=str(directory), **{**fields, **more})


def many_the(prompts, completions) -> list[float]:
    """A reward that a tiny model can learn in seconds: the letter e."""
    return [float(text.count("e")) for text in completions]


def move_policy(trained: PPOTrainer) -> None:
    """Away from the reference, as training would."""
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            if "lora_B.policy" in name:
                parameter.add_(0.05)


def trainer(directory: Path, model=None, callbacks=None, reward=many_the, **more) -> PPOTrainer:
    return PPOTrainer(
        model or tiny_policy(),
        config(directory, **more),
        reward=reward,
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def with_reference(tmp_path: Path):
    """A policy that starts from an adapter which is not the base, with a frozen copy beside it."""
    from peft import PeftModel

    first = tiny_policy()
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save_adapter(first, POLICY, tmp_path / "init", "tiny")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "init", adapter_name=POLICY, is_trainable=True)
    model.load_adapter(tmp_path / "init", REFERENCE, is_trainable=False)
    model.set_adapter(POLICY)
    return model


def weights_hash(model: ActorCritic) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".policy." in name or ".value." in name or "value_head" in name:
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


class Recorder(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.logs.append({"step": state.global_step, **logs})


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_before_the_first_update_nothing_is_clipped_and_the_policy_is_the_reference(tmp_path: Path, value: str) -> None:
    recorder = Recorder()
    trained = trainer(
        tmp_path, with_reference(tmp_path), [recorder], value=value, num_mini_batches=1, per_device_train_batch_size=16
    )
    trained.train()
    first = next(row for row in recorder.logs if row["step"] == 1)
    assert first["ppo/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["ppo/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert first["ppo/clip_fraction"] == 0
    assert first["ppo/policy_loss"] == pytest.approx(0, abs=1e-5)  # whitened advantages
    assert first["ppo/kl"] == pytest.approx(0, abs=1e-4)
    second = next(row for row in recorder.logs if row["step"] == 2)
    assert second["ppo/approx_kl"] > 1e-7


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_every_trained_role_gets_a_gradient_and_nothing_else_does(tmp_path: Path, value: str) -> None:
    trained = trainer(tmp_path, with_reference(tmp_path), value=value, total_episodes=32)
    before = {name: parameter.detach().clone() for name, parameter in trained.model.named_parameters()}
    trained.train()
    moved = {name for name, parameter in trained.model.named_parameters() if not torch.equal(parameter, before[name])}
    roles = {".policy.": any(".policy." in n for n in moved), ".value.": any(".value." in n for n in moved)}
    assert roles == {".policy.": True, ".value.": value == "adapter"}
    assert {"value_head.weight", "value_head.bias"} <= moved
    frozen = moved - {n for n in moved if ".policy." in n or ".value." in n or n.startswith("value_head")}
    assert not frozen


def test_modules_of_the_base_that_are_called_as_an_adapter_is_are_not_trained() -> None:
    """BERT's attention has a module `value`."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = RobertaForCausalLM(RobertaConfig(vocab_size=30, is_decoder=True, **shape))
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["query", "value"])
    model = actor_critic(get_peft_model(base, lora, adapter_name=POLICY), value="adapter", reward=None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"value_head.weight", "value_head.bias"} < trained
    assert all("lora_" in name or name.startswith("value_head") for name in trained)
    assert any("value.lora_A.value" in name for name in trained)


def test_a_head_with_an_adapter_leaves_the_exact_kl_unsaid(tmp_path: Path) -> None:
    base = tiny_llama()
    base.config.tie_word_embeddings = False
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "lm_head"])
    recorder = Recorder()
    trained = trainer(tmp_path, get_peft_model(base, lora, adapter_name=POLICY), [recorder], total_episodes=32)
    trained.train()
    assert recorder.logs and all("ppo/exact_kl" not in row for row in recorder.logs)
    assert any(row.get("ppo/kl", 0.0) > 0 for row in recorder.logs)


def test_with_its_adapters_off_the_model_is_the_base(tmp_path: Path) -> None:
    trained = trainer(tmp_path, total_episodes=16)
    trained.train()
    ids = torch.randint(6, 300, (2, 9))
    with torch.no_grad():
        policy = trained.model(ids, torch.ones_like(ids), 4, Ask("policy"))
        ours = trained.model(ids, torch.ones_like(ids), 4, Ask("reference", policy_states=policy.states))
        logps = tiny_llama()(ids, position_ids=torch.arange(9)[None]).logits[:, 3:-1].log_softmax(-1)
        policy_logps = plain_logits(trained.model.peft, ids)[:, 3:-1].log_softmax(-1)
    said = logps.gather(2, ids[:, 4:, None]).squeeze(2)
    assert torch.allclose(ours.logps, said, atol=1e-6)
    assert not torch.allclose(policy.logps, said, atol=1e-4)
    assert torch.allclose(ours.entropy, -(logps.exp() * logps).sum(2), atol=1e-6)
    # How far the policy is from the reference, over the whole vocabulary.
    divergence = (policy_logps.exp() * (policy_logps - logps)).sum(2)
    assert torch.allclose(ours.divergence, divergence, atol=1e-6) and float(divergence.min()) > 0


def plain_logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None].expand_as(ids)).logits


def test_logits_are_divided_by_the_temperature_wherever_they_are_used(tmp_path: Path) -> None:
    model = trainer(tmp_path, with_reference(tmp_path)).model
    ids = torch.randint(6, 300, (2, 9))
    with torch.no_grad():
        logps = (plain_logits(model.peft, ids)[:, 3:-1] / 0.7).log_softmax(-1)
        said = model(ids, torch.ones_like(ids), 4, Ask("policy", temperature=0.7))
    assert torch.allclose(said.logps, logps.gather(2, ids[:, 4:, None]).squeeze(2), atol=1e-6)


def test_a_pass_does_not_depend_on_padding_or_neighbours(tmp_path: Path) -> None:
    model = trainer(tmp_path, with_reference(tmp_path)).model
    ids, mask = torch.randint(6, 300, (3, 10)), torch.ones(3, 10, dtype=torch.long)
    wide = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids, torch.zeros(3, 2, dtype=torch.long)], 1)
    wide_mask = torch.cat([torch.zeros(3, 4, dtype=torch.long), mask, torch.zeros(3, 2, dtype=torch.long)], 1)
    with torch.no_grad():
        for role in ("policy", "reference"):
            alone = model(ids[:1], mask[:1], 5, Ask(role)).logps
            padded = model(wide, wide_mask, 9, Ask(role)).logps
            assert torch.allclose(alone, padded[:1, :5], atol=1e-5)
            assert not padded[:, 5:].any()
        values = model(wide, wide_mask, 9, Ask("value")).values[:1, :5]
        assert torch.allclose(model(ids[:1], mask[:1], 5, Ask("value")).values, values, atol=1e-5)


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_one_pass_of_eight_equals_eight_passes_of_one(tmp_path: Path, value: str) -> None:
    whole = trainer(tmp_path / "a", value=value, rollout_batch_size=8, num_mini_batches=1, total_episodes=8,
                    per_device_train_batch_size=8, max_grad_norm=1e9)  # fmt: skip
    parts = trainer(tmp_path / "b", value=value, rollout_batch_size=8, num_mini_batches=1, total_episodes=8,
                    per_device_train_batch_size=1, max_grad_norm=1e9)  # fmt: skip
    whole.train()
    parts.train()
    for (name, a), (_, b) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        # AdamW's first steps are the gradient's sign: where that is about 0 they differ by rounding.
        assert torch.allclose(a, b, atol=2e-4), name


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_recomputing_activations_changes_nothing(tmp_path: Path, value: str) -> None:
    trained = []
    for recompute in (False, True):
        more = {"value": value, "total_episodes": 32, "activation_checkpointing": recompute}
        if recompute:
            more["activation_checkpointing_kwargs"] = {"use_reentrant": False}
        trained.append(trainer(tmp_path / str(recompute), with_reference(tmp_path), **more))
        trained[-1].train()
    for (name, plain), (_, recomputed) in zip(*(t.model.named_parameters() for t in trained), strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6), name


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path, value: str) -> None:
    whole = trainer(tmp_path / "whole", with_reference(tmp_path), value=value)
    whole.train()
    stopped = trainer(tmp_path / "parts", with_reference(tmp_path), [StopAt(6)], value=value)
    stopped.train()
    assert stopped.state.global_step == 8  # put off to the end of the rollout
    resumed = trainer(tmp_path / "parts", with_reference(tmp_path), value=value)
    resumed.train(resume_from_checkpoint=True)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert resumed.watch.latest == whole.watch.latest


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_episodes_without_padding_train_what_padded_ones_train(tmp_path: Path, value: str) -> None:
    padded = tiny_policy()
    padded.get_base_model().set_attn_implementation("eager")  # takes no layouts
    trained = []
    for name, model in (("padded", padded), ("unpadded", tiny_policy())):
        trained.append(trainer(tmp_path / name, model, value=value, optim="sgd", learning_rate=0.1))
        trained[-1].train()
    slow, fast = trained
    assert slow.shared_gap is None and fast.shared_gap is not None and 0 < fast.shared_gap < 1e-5
    weights = [
        torch.cat([p.detach().flatten() for p in each.model.parameters() if p.requires_grad]) for each in trained
    ]
    assert float((weights[0] - weights[1]).abs().max()) < 1e-5
    start = trainer(tmp_path / "start", value=value)
    first = torch.cat([p.detach().flatten() for p in start.model.parameters() if p.requires_grad])
    assert float((weights[0] - first).abs().max()) > 1e-2


def test_a_run_that_was_killed_inside_a_rollout_makes_it_again(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 7:
                raise KilledError

    whole = trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(KilledError):
        trainer(tmp_path / "parts", callbacks=[Kill()]).train()
    assert [path.name for path in sorted((tmp_path / "parts").glob("checkpoint-*"))] == ["checkpoint-4"]
    resumed = trainer(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    assert weights_hash(resumed.model) == weights_hash(whole.model)


def test_checkpoints_fall_between_rollouts(tmp_path: Path) -> None:
    trainer(tmp_path, save_steps=3, save_total_limit=None).train()  # 4 steps a rollout
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) == [4, 8, 12]


def test_it_learns_and_a_dearer_kl_keeps_it_nearer(tmp_path: Path) -> None:
    ends: dict[float, tuple[float, float]] = {}
    for coefficient in (0.0, 1.0):
        recorder = Recorder()
        options = {"kl_coefficient": coefficient, "total_episodes": 16 * 24, "missing_eos_penalty": 0.0}
        trainer(tmp_path / str(coefficient), callbacks=[recorder], **options).train()
        rows = [row for row in recorder.logs if "ppo/score" in row]
        ends[coefficient] = (rows[-1]["ppo/score"] - rows[0]["ppo/score"], rows[-1]["ppo/kl"])
    assert ends[0.0][0] > 1.0, ends
    assert ends[0.0][1] > ends[1.0][1] >= -0.5, ends


def test_it_learns_from_scores_of_beginnings(tmp_path: Path) -> None:
    recorder = Recorder()
    options = {"kl_coefficient": 0.0, "total_episodes": 16 * 16, "missing_eos_penalty": 0.0}
    trainer(tmp_path, callbacks=[recorder], score_prefixes=6, **options).train()
    scores = [row["ppo/score"] for row in recorder.logs if "ppo/score" in row]
    assert scores[-1] > scores[0] + 1.0, scores


def test_training_ends_where_the_policy_has_gone_too_far(tmp_path: Path) -> None:
    trained = trainer(tmp_path, kl_coefficient=0.0, kl_stop_above=1e-4, total_episodes=160)
    trained.train()
    # The first rollout is the reference's own. An estimate may be below 0 by chance, so not always the second.
    assert 8 <= trained.state.global_step <= 24 and trained.state.global_step % 4 == 0
    assert "kl" in trained.watch.guards.reason


def test_scores_are_centred_and_scaled_by_the_references_own(tmp_path: Path) -> None:
    trained = trainer(tmp_path, total_episodes=16)
    trained.train()
    assert 0 < trained.scale.mean < 6 and 0 < trained.scale.std < 3
    raw = trainer(tmp_path / "raw", total_episodes=16, normalise="none")
    raw.train()
    assert (raw.scale.mean, raw.scale.std) == (0.0, 1.0)


def test_the_price_of_the_kl_and_the_score_are_all_of_an_episodes_reward(tmp_path: Path) -> None:
    trained = trainer(tmp_path, with_reference(tmp_path), kl_coefficient=0.3)
    trained._normalise_by_reference()
    move_policy(trained)
    rollout = trained.collect_rollout(0)
    batch = rollout.episodes
    kl = kl_tokens(batch.logps, batch.reference_logps, batch.mask, for_reward=True)
    assert float(kl.abs().max()) > 0.01
    cut = torch.tensor([0.0 if sample.finished else 1.0 for sample in rollout.samples])
    scores = (rollout.scores.values - trained.scale.mean) / trained.scale.std - cut
    assert torch.allclose(rollout.rewards.sum(1), scores - 0.3 * kl.sum(1), atol=1e-4)
    assert torch.allclose(rollout.paid, 0.3 * kl.sum(1), atol=1e-4)
    assert abs(float(masked_mean(batch.advantages, batch.mask))) < 1e-5


def test_the_reward_that_is_told_is_not_discounted(tmp_path: Path) -> None:
    """Potentials that are discounted leave the sum of tokens' rewards elsewhere."""
    trained = trainer(tmp_path, with_reference(tmp_path), kl_coefficient=0.3, gamma=0.8, score_prefixes=6)
    trained._normalise_by_reference()
    move_policy(trained)
    rollout = trained.collect_rollout(0)
    told = averages(rollout, health(rollout, 1.0, 1.0, None))["ppo/reward"]
    assert told == pytest.approx(float((rollout.shaped.total - 0.3 * rollout.kl.sum(1)).mean()), abs=1e-5)
    assert abs(told - float(rollout.rewards.sum(1).mean())) > 0.01
    for close_up in close_ups(rollout, tiny_tokenizer(), 0):
        assert close_up["terms"]["kl"] == pytest.approx(-0.3 * sum(each["kl"] for each in close_up["tokens"]), abs=1e-4)


def test_a_rollout_follows_from_its_number_alone(tmp_path: Path) -> None:
    trained = trainer(tmp_path)
    first = trained.collect_rollout(1).episodes
    torch.manual_seed(99)
    again = trained.collect_rollout(1).episodes
    assert torch.equal(first.input_ids, again.input_ids) and torch.equal(first.advantages, again.advantages)
    assert not torch.equal(trained.collect_rollout(2).episodes.input_ids[:, :4], first.input_ids[:, :4])


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be cut"):
        config(tmp_path, rollout_batch_size=10, num_mini_batches=3)
    with pytest.raises(InputError, match="peft_config"):
        trainer(tmp_path, tiny_llama())
    with pytest.raises(DataError, match="finite"):
        trainer(tmp_path, reward=lambda prompts, completions: [float("nan")] * len(completions)).train()
    with pytest.raises(DataError, match="no prompts"):
        PPOTrainer(tiny_policy(), config(tmp_path), reward=many_the, train_dataset=[],
                   processing_class=tiny_tokenizer())  # fmt: skip
