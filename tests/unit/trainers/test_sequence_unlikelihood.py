"""What a policy unlearns of its own answers, in the trainers of sft and dpo."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.unlikelihood import unlikelihood
from prefopt.models.generate import SamplingOptions, sample
from prefopt.models.roles import POLICY, policy_on, save_adapter
from prefopt.recipe.options.costs import BannedCost, RepetitionCost
from prefopt.recipe.schema import LoraSpec
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.costs.sample import Cost, Measured, Sample
from prefopt.rewards.flags import WeightedCost, flag, samples_of
from prefopt.trainers import pairs, sequence_unlikelihood
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from prefopt.trainers.sequence_unlikelihood import SequenceUnlikelihood
from prefopt.trainers.trl import SFTConfig, SFTTrainer, language_modeling_rows
from tests.tiny import random_rows, tiny_llama, tiny_policy, tiny_tokenizer
from tests.unit.trainers.ranks_script import with_dropout
from tests.unit.trainers.test_dpo import StopAt, weights_hash

METHODS = ("sft", "dpo")
AGAIN = WeightedCost(rule_cost(RepetitionCost(cost="repetition", ngram=2)), 1.5)
NEVER = WeightedCost(rule_cost(BannedCost(cost="banned", words=("never said",))), 1.0)
Trainer = SFTTrainer | DPOTrainer


def plan(*costs: WeightedCost, every: int = 2, longest: int = 10) -> SequenceUnlikelihood:
    return SequenceUnlikelihood(costs or (AGAIN,), every, longest)


def trainer(method: str, directory: Path, what: SequenceUnlikelihood | None, **more: Any) -> Trainer:
    rows, model = more.pop("rows", None) or random_rows(8), more.pop("model", None) or tiny_policy()
    callbacks = more.pop("callbacks", None)
    fields = {
        "output_dir": str(directory), "per_device_train_batch_size": 8, "per_device_eval_batch_size": 3,
        "learning_rate": 5e-3, "max_steps": 4, "logging_steps": 1, "use_cpu": True, "report_to": [], "seed": 5,
        "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False, "lr_scheduler_type": "constant",
        **more,
    }  # fmt: skip
    common = {"processing_class": tiny_tokenizer(), "sequence_unlikelihood": what, "callbacks": callbacks}
    if method == "dpo":
        return DPOTrainer(model, DPOConfig(**fields), train_dataset=rows, eval_dataset=rows, **common)
    skip = {"skip_prepare_dataset": True}
    args = SFTConfig(**fields, bf16=False, max_length=None, logging_nan_inf_filter=False, dataset_kwargs=skip)
    answers = language_modeling_rows([{**row, "completion_ids": row["chosen_ids"]} for row in rows])
    return SFTTrainer(model=model, args=args, train_dataset=answers, eval_dataset=answers, **common)


def moved(method: str, directory: Path, what: SequenceUnlikelihood | None, **more: Any) -> dict[str, Tensor]:
    """By steps of plain gradient descent, 1 of them unless said otherwise: the sum of the gradients."""
    model = more.pop("model", None) or tiny_policy()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    fields = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1, **more}
    trainer(method, directory, what, model=model, **fields).train()
    return {name: before[name] - p.detach() for name, p in model.named_parameters() if p.requires_grad}


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    size = max(float(value.abs().max()) for value in one.values())
    assert size > 0
    return max(float((one[name] - other[name]).abs().max()) for name in one) / size


def seen(one: Trainer, name: str) -> list[float]:
    return [
        row[f"sequence_unlikelihood/{name}"] for row in one.state.log_history if f"sequence_unlikelihood/{name}" in row
    ]


def greedy(model: Any, prompt: Sequence[int], longest: int) -> list[int]:
    """Token by token, without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + longest and (len(ids) == len(prompt) or ids[-1] != 2):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def term(model: Any, prompts: Sequence[Sequence[int]], costs: Sequence[WeightedCost], longest: int) -> Tensor:
    """Σ λ_t (-log(1 - p_t)) / tokens, by its equation, with a gradient."""
    said = [greedy(model, prompt, longest) for prompt in prompts]
    flags, counts = flag(samples_of(prompts, said, tiny_tokenizer()), costs)
    total = torch.zeros((), dtype=torch.double)
    for prompt, ids, each in zip(prompts, said, flags, strict=True):
        row = torch.tensor([[*prompt, *ids]])
        logps = model(input_ids=row).logits[0, :-1].double().log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
        total = total - (torch.tensor(each.unlikelihood) * torch.log1p(-logps[len(prompt) - 1 :].exp())).sum()
    assert counts.flagged_tokens
    return total / counts.tokens


@pytest.mark.parametrize("method", METHODS)
def test_the_term_is_its_equation(tmp_path: Path, method: str) -> None:
    """What it adds to the loss, and to the gradient."""
    model = tiny_policy()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_hand = term(model.eval(), [row["prompt_ids"] for row in random_rows(8)], [AGAIN], 10)
    gradients = dict(zip(trained, torch.autograd.grad(by_hand, list(trained.values())), strict=True))
    expected = float(by_hand.detach())
    whole, rest = (moved(method, tmp_path / str(bool(what)), what) for what in (plan(), None))
    assert gap(gradients, {name: whole[name] - rest[name] for name in whole}) < 1e-4
    one, other = (trainer(method, tmp_path / "a", what, max_steps=1) for what in (plan(), None))
    for each in (one, other):
        each.train()
    added = one.state.log_history[0]["loss"] - other.state.log_history[0]["loss"]
    assert added == pytest.approx(expected, rel=1e-4) and seen(one, "loss") == pytest.approx([expected])


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_is_flagged_training_is_what_it_was_bit_for_bit(tmp_path: Path, method: str) -> None:
    found = []
    for name, what in (("a", None), ("b", plan(NEVER, every=1))):
        one = trainer(method, tmp_path / name, what, model=with_dropout(tiny_policy(), 0.2))
        one.train()
        found.append((weights_hash(one.model), one.evaluate()["eval_loss"]))
    assert found[0] == found[1]
    assert seen(one, "loss") == seen(one, "flagged_share") == seen(one, "banned/rate") == [0.0] * 4


@pytest.mark.parametrize("method", METHODS)
def test_steps_one_three_five_have_the_term_and_evaluations_never(tmp_path: Path, method: str) -> None:
    one = trainer(method, tmp_path / "a", plan(), max_steps=5, eval_strategy="steps", eval_steps=1)
    one.train()
    steps = [row["step"] for row in one.state.log_history if "sequence_unlikelihood/loss" in row]
    assert steps == [1, 3, 5] and all(0 < share <= 1 for share in seen(one, "flagged_share"))
    assert not any("eval_sequence" in name for row in one.state.log_history for name in row)
    other = trainer(method, tmp_path / "b", None, model=one.adapted_model())
    assert one.evaluate()["eval_loss"] == other.evaluate()["eval_loss"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 4])
def test_it_makes_no_difference_how_a_step_is_cut(tmp_path: Path, method: str, size: int) -> None:
    whole = moved(method, tmp_path / "a", plan(), max_steps=3, learning_rate=0.5)
    cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    assert gap(whole, moved(method, tmp_path / "b", plan(), max_steps=3, learning_rate=0.5, **cut)) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_nor_how_a_pass_is(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = moved(method, tmp_path / "a", plan())
    monkeypatch.setattr(pairs, "TOKENS_PER_PASS", 60)
    monkeypatch.setattr(SFTTrainer, "micro_rows", 3)
    assert gap(whole, moved(method, tmp_path / "b", plan())) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path, method: str) -> None:
    """Stopped after a step without the term, resumed before one with it; dropout draws random numbers."""
    fields = {"rows": random_rows(22), "max_steps": 9, "save_strategy": "steps", "save_steps": 3,
              "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}  # fmt: skip

    def build(name: str, callbacks: Any = None) -> Trainer:
        model = with_dropout(tiny_policy(), 0.2)
        return trainer(method, tmp_path / name, plan(), model=model, callbacks=callbacks, **fields)

    whole = build("whole")
    whole.train()
    build("parts", [StopAt(4)]).train()
    second = build("parts")
    assert second.resumable() == tmp_path / "parts" / "checkpoint-3"
    second.train(resume_from_checkpoint=True)
    assert weights_hash(second.model) == weights_hash(whole.model)
    assert seen(second, "loss")[-2:] == seen(whole, "loss")[-2:]


def test_it_is_the_policy_that_answers_without_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the frozen adapter that it started from."""
    started = tiny_policy()
    for name, weight in started.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    save_adapter(started, POLICY, tmp_path / "adapter", "tiny")
    model = policy_on(tiny_llama(), LoraSpec(lora_r=4, lora_dropout=0.3), tmp_path / "adapter")
    found = []

    def look(policy: Any, tokenizer: Any, prompts: Any, options: Any) -> Any:
        assert policy is model and policy.active_adapters == [POLICY] and options.temperature == 0
        said = sample(policy, tokenizer, prompts, options)
        policy.eval()
        found.append([list(each.ids) for each in said] == [greedy(policy, prompt, 10) for prompt in prompts])
        policy.train()
        return said

    monkeypatch.setattr(sequence_unlikelihood, "sample", look)
    one = trainer("dpo", tmp_path / "run", plan(every=1), model=model, learning_rate=2e-2)
    one.train()
    assert found == [True] * 4
    assert one.model.training and model.training and model.active_adapters == [POLICY]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(".policy." in name for name in trained)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_weigh_nothing_are_not_continued(tmp_path: Path, method: str) -> None:
    rows = [{**row, "weight": float(number != 1)} for number, row in enumerate(random_rows(3))]
    one = trainer(method, tmp_path, plan(), rows=rows)
    given = list(one.train_dataset)
    assert one.prompts_of(one.data_collator(given)) == [rows[0]["prompt_ids"], [], rows[2]["prompt_ids"]]
    assert one.prompts_of(one.data_collator([one.weightless_row(given[0])])) == [[]]


@pytest.mark.parametrize("method", METHODS)
def test_prompts_that_leave_no_room_are_not_continued_and_that_is_said_once(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    hashes = []
    for name, what in (("a", None), ("b", plan(every=1, longest=200))):  # of 128 positions
        one = trainer(method, tmp_path / name, what)
        with caplog.at_level(logging.WARNING):
            one.train()
        hashes.append(weights_hash(one.model))
    assert hashes[0] == hashes[1] and seen(one, "loss") == []
    assert sum("leave no room" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_row_for_ranks_that_have_nothing_adds_nothing(tmp_path: Path, method: str) -> None:
    one = trainer(method, tmp_path, plan())
    one.unlikelihood_of(one.model, [sequence_unlikelihood._NOTHING]).backward()
    gradients = [weight.grad for weight in one.model.parameters() if weight.requires_grad]
    assert gradients and all(gradient is not None and not gradient.any() for gradient in gradients)


class Word(Cost):
    """Flags a text wherever it is said."""

    label, threshold = "word", 0.0

    def __init__(self, text: str) -> None:
        self.text = text

    def measure(self, samples: Sequence[Sample]) -> list[Measured]:
        places = [sample.text.find(self.text) for sample in samples]
        return [Measured(float(at >= 0), ((at, at + len(self.text)),) if at >= 0 else ()) for at in places]


def test_only_what_is_flagged_becomes_less_likely(tmp_path: Path) -> None:
    """A policy that says one sentence by heart, and goes on learning all of it but the word."""
    tokenizer, model = tiny_tokenizer(), tiny_policy()
    said = [*tokenizer("the lamp is red and the chair costs nine euro", add_special_tokens=False)["input_ids"], 2]
    row = {"prompt_ids": [1, 9, 17], "chosen_ids": said, "rejected_ids": [7, 2]}
    trainer("sft", tmp_path / "a", None, rows=[row], model=model, max_steps=40, learning_rate=1e-2).train()
    ids = torch.tensor([[*row["prompt_ids"], *said]])

    def logps() -> Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits[0, 2:-1].log_softmax(-1).gather(1, ids[0, 3:, None])[:, 0]

    before = logps()
    assert greedy(model, row["prompt_ids"], len(said)) == said
    (flags,), _ = flag(samples_of([row["prompt_ids"]], [said], tokenizer), [WeightedCost(Word("red"), 1.0)])
    flagged = torch.tensor(flags.unlikelihood) > 0
    silent = {**row, "imitation": (~flagged).float().tolist()}
    what = plan(WeightedCost(Word("red"), 1.0), every=1, longest=len(said))
    one = trainer("sft", tmp_path / "b", what, rows=[silent], model=model, max_steps=30, learning_rate=3e-3)
    one.train()
    change = logps() - before
    assert 0 < flagged.sum() < len(said) and change[flagged].min() < -0.5
    assert (change[~flagged] > -0.05).all()
    assert seen(one, "word/rate")[0] == 1.0 and seen(one, "word/rate")[-1] == 0.0


def walks(count: int, seed: int, length: int = 20) -> list[dict[str, list[int]]]:
    """Answers in which every word has a favourite successor, and is followed by it 6 times of 10.

    Such a text hardly repeats itself; a policy that always says what is likeliest goes in circles.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids = [int(torch.randint(20, 60, (1,), generator=generator))]
        while len(ids) < length + 1:
            way = int(torch.multinomial(torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]), 1, generator=generator))
            ids.append(20 + (7 * (ids[-1] // 8) + 11 * way + 3) % 40)
        found.append({"prompt_ids": [1, ids[0]], "chosen_ids": ids[1:], "rejected_ids": [7, 2]})
    return found


def repeated(model: Any, rows: Sequence[dict[str, list[int]]]) -> float:
    """Share of 4-grams of greedy answers that were there before (seq-rep-4 of arXiv 1908.04319)."""
    options = SamplingOptions(40, temperature=0)
    shares = []
    for said in sample(model, tiny_tokenizer(), [row["prompt_ids"] for row in rows], options):
        grams = [said.ids[start : start + 4] for start in range(len(said.ids) - 3)]
        shares.append(1 - len(set(grams)) / max(1, len(grams)))
    return sum(shares) / len(shares)


def loss_of(model: Any, rows: Sequence[dict[str, list[int]]]) -> float:
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"] for row in rows])
    with torch.no_grad():
        said = model.eval()(input_ids=ids).logits[:, 1:-1].log_softmax(-1).gather(2, ids[:, 2:, None])
    return -float(said.mean())


@pytest.mark.slow
def test_a_policy_that_goes_in_circles_does_so_less_and_keeps_what_it_knows(tmp_path: Path) -> None:
    rows, held_out, model = walks(256, 1), walks(32, 2), tiny_policy()
    fields = {"rows": rows, "model": model, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 32}
    trainer("sft", tmp_path / "a", None, **fields, max_steps=150, learning_rate=2e-2).train()
    before, nll_before = repeated(model, held_out), loss_of(model, held_out)
    fours = WeightedCost(rule_cost(RepetitionCost(cost="repetition", ngram=4)), 3.0)
    trainer("sft", tmp_path / "b", plan(fours, longest=40), **fields, max_steps=60, learning_rate=1e-2).train()
    assert before > 0.7 and repeated(model, held_out) < 0.6 * before
    assert loss_of(model, held_out) < 1.05 * nll_before


def test_the_clamp_of_the_loss_is_that_of_tokens_in_data() -> None:
    """A token that is said for sure is let go of as well: the term has the straight line of the loss."""
    certain = torch.tensor(-1e-9, requires_grad=True)
    unlikelihood(certain).backward()
    assert certain.grad is not None and torch.isfinite(certain.grad) and certain.grad > 0
