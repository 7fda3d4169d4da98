import hashlib
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from prefopt.errors import DataError, InputError, IntegrityError, TrainingDiverged
from prefopt.models.roles import POLICY, REFERENCE, reference_active, save_adapter
from prefopt.trainers.callbacks import WarnOfDisplacement
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from tests.tiny import random_rows, tiny_llama, tiny_policy, tiny_tokenizer


def config(directory: Path, **more) -> DPOConfig:
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
        "lr_scheduler_type": "linear",
    }
    return DPOConfig(output_dir=str(directory), **{**fields, **more})


def trainer(directory: Path, rows=None, model=None, callbacks=None, held_out=None, **more) -> DPOTrainer:
    return DPOTrainer(
        model or tiny_policy(),
        config(directory, **more),
        train_dataset=rows or random_rows(24),
        eval_dataset=held_out or random_rows(8, seed=9),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def weights_hash(model) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".policy." in name:
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_it_learns_to_separate_the_pairs(tmp_path: Path) -> None:
    t = trainer(tmp_path, max_steps=40)
    t.train()
    log = [row for row in t.state.log_history if "dpo/margin" in row]
    assert log[0]["dpo/margin"] == pytest.approx(0, abs=1e-6) and log[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert log[-1]["loss"] < 0.45 and log[-1]["dpo/accuracy"] > 0.8
    assert t.evaluate()["eval_loss"] > 0


def test_only_the_policy_is_trained(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    before = {name: parameter.clone() for name, parameter in t.model.named_parameters()}
    t.train()
    changed = {name for name, parameter in t.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all(".policy." in name for name in changed)


def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    first = trainer(tmp_path / "parts", callbacks=[StopAt(3)])  # one step after the checkpoint of step 2
    first.train()
    second = trainer(tmp_path / "parts")
    assert second.resumable() == tmp_path / "parts" / "checkpoint-2"
    second.train(resume_from_checkpoint=True)
    assert weights_hash(second.model) == weights_hash(whole.model)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", save_total_limit=2)
    whole.train()
    torn = tmp_path / "whole" / "checkpoint-6" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    again = trainer(tmp_path / "whole")
    assert again.resumable() == tmp_path / "whole" / "checkpoint-4"
    again.train(resume_from_checkpoint=True)
    assert weights_hash(again.model) == weights_hash(whole.model)


def test_checkpoints_hold_no_pickled_arguments_and_rotate(tmp_path: Path) -> None:
    trainer(tmp_path, save_total_limit=1).train()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-6"]
    names = {p.name for p in (tmp_path / "checkpoint-6").iterdir()}
    assert "manifest.json" in names and "training_args.bin" not in names


def test_one_batch_of_eight_equals_eight_batches_of_one(tmp_path: Path) -> None:
    # Adam would divide by gradients that are 0 but for rounding.
    more = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.5}
    joint = trainer(tmp_path / "a", per_device_train_batch_size=8, **more)
    split = trainer(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **more)
    joint.train()
    split.train()
    pairs = zip(joint.model.named_parameters(), split.model.named_parameters(), strict=True)
    for (name, a), (_, b) in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    first, second = (t.state.log_history[0] for t in (joint, split))
    assert first["dpo/chosen_logp"] == pytest.approx(second["dpo/chosen_logp"], rel=1e-5)


def test_a_weight_of_two_equals_the_row_twice(tmp_path: Path) -> None:
    rows = random_rows(3)
    weighted = [{**row, "weight": 2.0 if i == 0 else 1.0} for i, row in enumerate(rows)]
    repeated = [{**row, "weight": 1.0} for row in [rows[0], *rows]]
    a = trainer(tmp_path / "a", weighted, per_device_train_batch_size=3, max_steps=2)
    b = trainer(tmp_path / "b", repeated, per_device_train_batch_size=4, max_steps=2)
    a.train()
    b.train()
    for (name, x), (_, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, msg=name)


def test_the_reference_is_the_adapter_the_policy_started_from(tmp_path: Path) -> None:
    from prefopt.models.roles import policy_on
    from prefopt.recipe.schema import LoraSpec

    trained = trainer(tmp_path / "first")
    trained.train()
    save_adapter(trained.model.peft, POLICY, tmp_path / "adapter", "tiny")
    model = policy_on(tiny_llama(), LoraSpec(), tmp_path / "adapter")
    assert set(model.peft_config) == {POLICY, REFERENCE}
    second = trainer(tmp_path / "second", model=model)
    second.train()
    assert second.state.log_history[0]["dpo/margin"] == pytest.approx(0, abs=1e-5)
    ids = torch.tensor([random_rows(1)[0]["prompt_ids"]])
    with torch.no_grad(), reference_active(model):
        reference = model(ids).logits
    torch.testing.assert_close(reference, trained.model.peft(ids).logits)
    assert not torch.allclose(model(ids).logits, reference)
    frozen = [p for name, p in model.named_parameters() if f".{REFERENCE}." in name]
    assert frozen and not any(p.requires_grad for p in frozen)


def test_another_reference_than_the_start_is_refused(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    with torch.no_grad():  # the policy has moved, the reference has not
        next(p for name, p in t.model.named_parameters() if "lora_B" in name).fill_(0.5)
    with pytest.raises(InputError, match="differ from the reference"):
        t.train()


class Poison(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 3:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))


def test_nan_stops_the_run_and_leaves_a_finite_checkpoint(tmp_path: Path) -> None:
    t = trainer(tmp_path, callbacks=[Poison()])
    with pytest.raises(TrainingDiverged, match="step 4"):
        t.train()
    assert t.state.global_step == 4
    assert trainer(tmp_path).resumable() == tmp_path / "checkpoint-2"


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=2).train()
    other = DPOTrainer(
        tiny_policy_of_rank(2), config(tmp_path), train_dataset=random_rows(24), processing_class=tiny_tokenizer()
    )
    with pytest.raises((IntegrityError, RuntimeError), match=r"size mismatch|does not hold"):
        other.train(resume_from_checkpoint=True)


def tiny_policy_of_rank(rank: int):
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")
    return get_peft_model(tiny_llama(), lora, adapter_name=POLICY)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    rows = random_rows(4)
    with pytest.raises(InputError, match="adapter named 'policy'"):
        DPOTrainer(tiny_llama(), config(tmp_path), train_dataset=rows, processing_class=tiny_tokenizer())
    with pytest.raises(InputError, match="processing_class"):
        DPOTrainer(tiny_policy(), config(tmp_path), train_dataset=rows)
    with pytest.raises(DataError, match="no pairs"):
        DPOTrainer(tiny_policy(), config(tmp_path), train_dataset=[], processing_class=tiny_tokenizer()).train()
    for where in (
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ):
        base = tiny_llama()
        base.config.tie_word_embeddings = False
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, **where)
        with pytest.raises(InputError, match="tdpo compares"):
            trainer(tmp_path, model=get_peft_model(base, lora, adapter_name="policy"), loss_type="tdpo")


def test_it_takes_text_and_messages_as_trl_does(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"how much is lamp {i}?", "chosen": f"nine euro, {i}", "rejected": "I do not know"} for i in range(8)
    ]
    messages = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]
    a = DPOTrainer(tiny_policy(), config(tmp_path), train_dataset=rows, processing_class=tiny_tokenizer())
    b = DPOTrainer(tiny_policy(), config(tmp_path), train_dataset=messages, processing_class=tiny_tokenizer())
    assert a.train_dataset == b.train_dataset and len(a.train_dataset) == 8
    ids = a.train_dataset[0]
    text = tiny_tokenizer().decode(ids["prompt_ids"] + ids["chosen_ids"])
    assert text == "<|begin|><|user|>how much is lamp 0?<|assistant|>nine euro, 0<|end|>"


def test_in_half_precision_the_policy_starts_exactly_at_the_reference(tmp_path: Path) -> None:
    model = tiny_policy()
    model.to(torch.bfloat16)
    t = trainer(tmp_path, model=model, bf16=True, max_steps=1, save_strategy="no")
    t.train()
    assert t.state.log_history[0]["dpo/margin"] == pytest.approx(0, abs=1e-6)


class StopInPass(TrainerCallback):
    def on_prediction_step(self, args, state, control, **kwargs) -> None:
        raise InterruptedError("asked to stop")


def test_a_callback_may_end_the_pass_of_the_reference(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        trainer(tmp_path, callbacks=[StopInPass()]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_soft_label_is_the_mean_of_both_orders_and_a_tie_pulls_nowhere(tmp_path: Path) -> None:
    rows = random_rows(4)
    # Plain steps: AdamW's first one is the gradient's sign, whatever is left of it by rounding.
    ties = trainer(tmp_path / "a", [{**row, "probability": 0.5} for row in rows], max_steps=1, optim="sgd")
    before = {name: p.clone() for name, p in ties.model.named_parameters() if p.requires_grad}
    ties.train()
    assert ties.state.log_history[0]["grad_norm"] < 1e-5
    assert all(torch.allclose(p, before[n], atol=1e-4) for n, p in ties.model.named_parameters() if n in before)
    swapped = [{**r, "chosen_ids": r["rejected_ids"], "rejected_ids": r["chosen_ids"]} for r in rows]
    a = trainer(tmp_path / "b", [{**row, "probability": 0.2} for row in rows], max_steps=3)
    b = trainer(tmp_path / "c", [{**row, "probability": 0.8} for row in swapped], max_steps=3)
    a.train()
    b.train()
    for (name, x), (_, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, msg=name)
    last = [t.state.log_history[2]["dpo/accuracy"] for t in (a, b)]
    assert last[0] == pytest.approx(last[1])


def test_evaluating_more_often_does_not_change_what_is_trained(tmp_path: Path) -> None:
    def dropout_policy():
        model = tiny_policy()
        for module in model.modules():
            if isinstance(module, torch.nn.Identity):
                continue
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["policy"] = torch.nn.Dropout(0.1)
        return model

    plain = trainer(tmp_path / "a", model=dropout_policy(), max_steps=4)
    plain.train()
    often = trainer(tmp_path / "b", model=dropout_policy(), max_steps=4, eval_strategy="steps", eval_steps=1)
    often.train()
    assert weights_hash(plain.model) == weights_hash(often.model)


def test_saving_asks_no_hub_and_the_saved_adapter_is_complete(tmp_path: Path, monkeypatch) -> None:
    import peft.utils.save_and_load as peft_saving

    def asked(*args, **kwargs):
        raise AssertionError("PEFT asked the Hub for the base")

    monkeypatch.setattr(peft_saving, "check_file_exists_on_hf_hub", asked)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    t = trainer(tmp_path / "run")
    t.base_name = "base"
    t.train()
    t.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert '"base_model_name_or_path": "base"' in (tmp_path / "saved" / "adapter_config.json").read_text()


LOSSES = [
    {"loss_type": name, **more}
    for name, more in (
        ("cdpo", {"label_smoothing": 0.1}),
        ("ipo_sum", {}),
        ("rdpo", {}),
        ("chipo", {}),
        ("dpop", {"dpop_lambda": 2.0}),
        ("tdpo", {}),
        ("ropo", {}),
        ("rpo", {"rpo_eta": 2.0}),
        ("odpo", {"odpo_alpha": 0.1}),
        ("simpo", {"beta": 2.0}),
        ("cpo", {}),
        ("orpo", {"orpo_lambda": 1.0}),
        ("aot", {}),
        (["sigmoid", "sft"], {"loss_weights": [1.0, 0.2]}),
        ("sigmoid", {"use_weighting": True}),
        ("sigmoid", {"ld_alpha": 0.5}),
        ("sigmoid", {"dr_beta": 1.0}),
        ("sigmoid", {"f_divergence_type": "js_divergence", "beta": 1.0}),
    )
]


@pytest.mark.parametrize("options", LOSSES, ids=lambda options: "-".join(map(str, options.values())))
def test_every_loss_learns_to_tell_the_pairs_apart(tmp_path: Path, options: dict) -> None:
    rows = [{**row, "margin": 1.0} for row in random_rows(8)]
    t = trainer(tmp_path, rows, held_out=rows, max_steps=24, save_strategy="no", logging_steps=100, **options)
    before = t.evaluate(rows)
    t.train()
    after = t.evaluate(rows)
    assert after["eval_loss"] < before["eval_loss"] and after["eval_dpo/margin"] > before["eval_dpo/margin"]
    assert 0 < after["eval_dpo/entropy"] < 10


def test_losses_without_a_reference_compute_none(tmp_path: Path) -> None:
    t = trainer(tmp_path, loss_type="simpo", beta=2.0, max_steps=2)
    t.train()
    assert "reference_chosen_logps" not in t.train_dataset[0]
    assert not any("dpo/chosen_shift" in row for row in t.state.log_history)
    mixed = trainer(tmp_path / "mixed", loss_type=["simpo", "sigmoid"], max_steps=2)
    mixed.train()
    assert "reference_chosen_logps" in mixed.train_dataset[0]


@pytest.mark.parametrize("options", [{"loss_type": ["sft", "sigmoid"]}, {"loss_type": "cpo"}], ids=["sft", "cpo"])
def test_a_likelihood_is_divided_by_the_tokens_of_the_whole_step(tmp_path: Path, options: dict) -> None:
    more = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.5, "save_strategy": "no", **options}
    rows = [row | {"probability": 1.0 - 0.1 * (number % 8)} for number, row in enumerate(random_rows(24))]
    joint = trainer(tmp_path / "a", rows=rows, per_device_train_batch_size=8, **more)
    split = trainer(tmp_path / "b", rows=rows, per_device_train_batch_size=1, gradient_accumulation_steps=8, **more)
    joint.train()
    split.train()
    for (name, a), (_, b) in zip(joint.model.named_parameters(), split.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("options", "row", "said"),
    [
        ({"loss_type": "odpo"}, {}, "needs a margin"),
        ({"loss_type": "rpo"}, {}, "needs a margin"),
        ({"loss_type": "aot"}, {"weight": 2.0}, "sorts the rows"),
        ({"loss_type": "aot_unpaired"}, {"probability": 0.7}, "sorts the rows"),
    ],
)
def test_rows_that_a_loss_cannot_use_are_refused(tmp_path: Path, options: dict, row: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        trainer(tmp_path, [{**given, **row} for given in random_rows(8)], **options)


def test_answers_that_become_less_likely_are_spoken_of_once(tmp_path: Path) -> None:
    heard: list[str] = []
    rows = random_rows(8)
    # Chosen and rejected answers that share all but their end can be told apart by making both unlikely.
    t = trainer(tmp_path, rows, callbacks=[WarnOfDisplacement(heard.append)], max_steps=40, learning_rate=3e-2)
    t.train()
    lowest = min(row["dpo/chosen_shift"] for row in t.state.log_history if "dpo/chosen_shift" in row)
    assert (len(heard) == 1) is (lowest < -1.0)
    quiet: list[str] = []
    callback = WarnOfDisplacement(quiet.append)
    for shift in (0.5, -0.9, -2.5, -3.0):
        callback.on_log(t.args, t.state, t.control, {"dpo/chosen_shift": shift})
    assert len(quiet) == 1 and "2.5 nats less likely" in quiet[0]
