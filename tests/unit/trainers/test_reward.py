"""The reward trainer: it learns, resumes exactly, and what it saves is what it is."""

import hashlib
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
import trl
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback

from prefopt.data.templates import Encoder
from prefopt.data.toy import world
from prefopt.errors import DataError, InputError, IntegrityError
from prefopt.losses.reward import reward_loss
from prefopt.models.heads import RewardModel, new_reward_model
from prefopt.stats.intervals import wilson
from prefopt.trainers import reward as reward_module
from prefopt.trainers.pairs import agreement
from prefopt.trainers.pretrain import train_tokenizer
from prefopt.trainers.reward import RewardConfig, RewardTrainer
from prefopt.trainers.rows import pair_row
from tests.tiny import VOCABULARY, random_rows, tiny_llama, tiny_tokenizer


def config(directory: Path, **more) -> RewardConfig:
    fields = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 5e-3,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    return RewardConfig(output_dir=str(directory), **{**fields, **more})


def model() -> RewardModel:
    torch.manual_seed(1)
    return new_reward_model(tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), None)


def rows(count: int = 24, seed: int = 0) -> list[dict[str, object]]:
    """Chosen answers hold one token more often: something that can be learned."""
    told = random_rows(count, seed)
    return [{**row, "chosen_ids": [7, 7, *row["chosen_ids"]]} for row in told]


def trainer(directory: Path, train=None, callbacks=None, **more) -> RewardTrainer:
    return RewardTrainer(
        model(),
        config(directory, **more),
        train_dataset=train or rows(),
        eval_dataset=rows(16, seed=9),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def weights_hash(trained: RewardTrainer) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(trained.model.named_parameters()):
        if ".reward." in name or "score" in name:
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_it_learns_what_is_preferred_and_says_so_for_held_out_pairs(tmp_path: Path) -> None:
    trained = trainer(tmp_path, rows(96), max_steps=40, per_device_train_batch_size=8, save_strategy="no")
    trained.train()
    metrics = trained.evaluate()
    assert metrics["eval_reward/accuracy"] >= 0.9 and metrics["eval_loss"] < 0.5
    chosen, rejected = trained.scores(rows(16, seed=9))
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert sum(m > 0 for m in margins) / 16 == pytest.approx(metrics["eval_reward/accuracy"])
    assert sum(margins) / 16 == pytest.approx(metrics["eval_reward/margin"], abs=1e-4)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_run_that_stopped_in_its_second_epoch_goes_on_as_if_it_had_not(tmp_path: Path, strategy: str) -> None:
    more = {"max_steps": 10, "save_steps": 8, "train_sampling_strategy": strategy}  # epochs have 6 steps
    whole = trainer(tmp_path / "whole", **more)
    whole.train()
    trainer(tmp_path / "parts", callbacks=[StopAt(8)], **more).train()
    resumed = trainer(tmp_path / "parts", **more)
    resumed.train(resume_from_checkpoint=True)
    assert weights_hash(resumed) == weights_hash(whole)


def test_a_run_that_had_ended_in_the_middle_of_an_epoch_takes_no_further_step(tmp_path: Path) -> None:
    for more in ({"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 0.5}):
        directory = tmp_path / str(more["max_steps"])
        ended = trainer(directory, **more)
        ended.train()
        again = trainer(directory, **more)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == ended.state.global_step
        assert weights_hash(again) == weights_hash(ended)
        assert again.evaluate()["eval_loss"] == pytest.approx(ended.evaluate()["eval_loss"])
    further = trainer(tmp_path / "4", max_steps=6)
    further.train(resume_from_checkpoint=True)
    assert further.state.global_step == 6


def test_one_pass_of_eight_equals_eight_passes_of_one(tmp_path: Path) -> None:
    trained = []
    for size in (8, 1):
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 2}
        trained.append(trainer(tmp_path / str(size), rows(8), save_strategy="no", **more))
        trained[-1].train()
    for (name, a), (_, b) in zip(*(t.model.named_parameters() for t in trained), strict=True):
        assert torch.allclose(a, b, atol=2e-4), name


def test_a_pair_without_weight_changes_nothing(tmp_path: Path) -> None:
    # Every step has the same weighted pairs; what the others say must make no difference.
    kept = [{**row, "weight": 1.0} for row in rows(2)]
    hashes = []
    for seed in (1, 2):
        noise = [{**row, "weight": 0.0} for row in rows(2, seed=seed)]
        more = {"per_device_train_batch_size": 4, "max_steps": 3, "save_strategy": "no"}
        trained = trainer(tmp_path / str(seed), [*kept, *noise], **more)
        trained.train()
        hashes.append(trained.scores(kept))
    assert torch.allclose(torch.tensor(hashes[0]), torch.tensor(hashes[1]), atol=1e-4)


def test_a_label_below_one_half_prefers_the_other_answer(tmp_path: Path) -> None:
    told = [{**row, "probability": 0.0} for row in rows(96)]
    trained = trainer(tmp_path, told, max_steps=40, per_device_train_batch_size=8, save_strategy="no")
    trained.train()
    chosen, rejected = trained.scores(rows(16, seed=9))
    assert sum(c < r for c, r in zip(chosen, rejected, strict=True)) >= 14


def test_rows_grouped_by_length_are_all_used_once(tmp_path: Path) -> None:
    told = [{**row, "mark": number} for number, row in enumerate(rows(24))]
    trained = trainer(tmp_path, told, train_sampling_strategy="group_by_length")
    order = list(trained._get_train_sampler())
    assert sorted(order) == list(range(24)) and order != sorted(order)
    trained.train()
    assert trained.evaluate()["eval_loss"] > 0


def test_a_head_that_is_not_saved_as_it_is_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reward_module.save_reward

    def wrong(peft, adapter, head, directory, base_name, **more) -> None:
        with torch.no_grad():
            head.weight += 1
        right(peft, adapter, head, directory, base_name, **more)
        with torch.no_grad():
            head.weight -= 1

    trained = trainer(tmp_path, save_strategy="no", max_steps=1)
    trained.train()
    trained.save_weights(tmp_path / "right")
    assert [p for p in trained.model.parameters() if p.requires_grad]
    monkeypatch.setattr(reward_module, "save_reward", wrong)
    with pytest.raises(IntegrityError, match="scores differently"):
        trained.save_weights(tmp_path / "wrong")


def test_training_goes_on_after_a_save_as_without_one(tmp_path: Path) -> None:
    often, never = trainer(tmp_path / "a", save_steps=1), trainer(tmp_path / "b", save_strategy="no")
    often.train()
    never.train()
    assert weights_hash(often) == weights_hash(never)


def test_text_is_tokenised_and_what_cannot_work_is_said(tmp_path: Path) -> None:
    texts = [{"prompt": "the lamp", "chosen": "is red", "rejected": "is nine"}] * 4
    trained = RewardTrainer(
        tiny_llama(),
        config(tmp_path, max_steps=1, save_strategy="no"),
        train_dataset=texts,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trained.train()
    assert max(token for row in trained.train_dataset for token in row["prompt_ids"]) < VOCABULARY
    with pytest.raises(InputError, match="adapter named 'reward'"):
        RewardTrainer(tiny_llama(), config(tmp_path), train_dataset=rows(), processing_class=tiny_tokenizer())
    with pytest.raises(DataError, match="no pairs"):
        RewardTrainer(model(), config(tmp_path), train_dataset=[], processing_class=tiny_tokenizer())


def test_a_tie_of_the_scores_or_of_the_label_counts_half() -> None:
    margin = torch.tensor([2.0, -1.0, 0.0, 2.0, -1.0])
    assert agreement(margin, {}).tolist() == [1.0, 0.0, 0.5, 1.0, 0.0]
    soft = {"probability": torch.tensor([0.9, 0.9, 0.9, 0.5, 0.1])}
    assert agreement(margin, soft).tolist() == [1.0, 0.0, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("coefficient", [None, 0.1])
def test_the_loss_is_that_of_trl(tmp_path: Path, coefficient: float | None) -> None:
    classifier = LlamaForSequenceClassification(LlamaConfig(**{**tiny_llama().config.to_dict(), "num_labels": 1}))
    pairs = [{name: row[name] for name in ("chosen_ids", "rejected_ids")} for row in random_rows(6)]
    margins = [0.0, 0.3, 1.0, 2.0, 0.5, 0.1]
    theirs = trl.RewardTrainer(
        classifier,
        trl.RewardConfig(str(tmp_path), center_rewards_coefficient=coefficient, use_cpu=True, bf16=False, report_to=[]),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tiny_tokenizer(),
    )
    marked = [{**row, "margin": margin} for row, margin in zip(pairs, margins, strict=True)]
    for rows_of, margin in ((pairs, None), (marked, torch.tensor(margins))):
        loss, outputs = theirs.compute_loss(classifier, theirs.data_collator(rows_of), return_outputs=True)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        ours = reward_loss(chosen, rejected, margin=margin, center_rewards_coefficient=coefficient or 0.0)
        assert ours.losses.mean().item() == pytest.approx(loss.item(), abs=1e-6)
        assert ours.margins.abs().max() > 1e-3


def clear_pairs(count: int, seed: int) -> list:
    """Toy pairs that gold tells apart by two temperatures or more, labelled by gold: no noise."""
    found = []
    for pair in world.preferences(3 * count, seed, with_gold=True):
        if pair.margin >= 2 * world.TEMPERATURE:
            found.append(pair)
        elif pair.margin <= -2 * world.TEMPERATURE:
            found.append(replace(pair, chosen=pair.rejected, rejected=pair.chosen, margin=-pair.margin))
    return found[:count]


@pytest.mark.slow
def test_a_few_hundred_clear_pairs_of_the_toy_world_teach_a_model_that_was_never_trained(tmp_path: Path) -> None:
    tokenizer = train_tokenizer((turn.content for talk in world.corpus(200, 0) for turn in talk), 400)
    encoder = Encoder(tokenizer, 256)
    train, held_out = ([pair_row(p, encoder) for p in clear_pairs(*table)] for table in ((400, 21), (200, 22)))
    torch.manual_seed(11)
    shape = tiny_llama().config.to_dict() | {"vocab_size": 400, "intermediate_size": 64, "max_position_embeddings": 256}
    base = LlamaForCausalLM(LlamaConfig(**shape)).requires_grad_(False)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    more = {"max_steps": 60, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 64, "logging_steps": 60}
    trained = RewardTrainer(
        new_reward_model(base, lora, None),
        config(tmp_path, save_strategy="no", **more),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    trained.train()
    accuracy = trained.evaluate()["eval_reward/accuracy"]
    assert wilson(accuracy * len(held_out), len(held_out)).low > 0.5, accuracy
