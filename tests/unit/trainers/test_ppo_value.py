"""What trains PPO's value: alone at first where asked for, and at a rate of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from prefopt.errors import InputError
from prefopt.trainers.ppo import PPOTrainer
from tests.tiny import tiny_policy, tiny_tokenizer
from tests.unit.trainers.test_ppo import PROMPTS, Recorder, config, many_the, trainer, with_reference
from tests.unit.trainers.test_ppo_options import DEMONSTRATIONS, moved


class Weights(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.on_step_end(args, state, control, model)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.kept.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})

    def moves(self, what: str) -> list[bool]:
        """Whether any such weight moved in each step."""
        return [
            any(not torch.equal(one[name], other[name]) for name in one if what in name)
            for one, other in zip(self.kept, self.kept[1:], strict=False)
        ]


@pytest.mark.parametrize("value", ["adapter", "shared"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_warm_up_trains_the_value_alone(tmp_path: Path, value: str, decay: float) -> None:
    seen = Weights()
    trained = PPOTrainer(
        with_reference(tmp_path), config(tmp_path, value=value, value_warmup_rollouts=2, weight_decay=decay),
        reward=many_the, train_dataset=PROMPTS, processing_class=tiny_tokenizer(), callbacks=[seen],
        demonstrations=DEMONSTRATIONS,
    )  # fmt: skip
    trained.train()
    assert seen.moves(".policy.") == [False] * 8 + [True] * 4
    assert seen.moves("value_head") == [True] * 12
    if value == "adapter":
        assert all(seen.moves(".value.")[1:])  # in the first step the head is 0, and passes nothing down


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_the_value_learns_at_its_own_rate_and_the_policy_as_before(tmp_path: Path, value: str) -> None:
    """AdamW's first step goes as far as its rate says."""

    def steps(rate: float | None) -> tuple[Weights, Recorder]:
        seen, recorder = Weights(), Recorder()
        trainer(
            tmp_path / str(rate), with_reference(tmp_path), [seen, recorder], total_episodes=16, num_mini_batches=1,
            value=value, value_learning_rate=rate, learning_rate=2e-3, max_grad_norm=1e9,
        ).train()  # fmt: skip
        return seen, recorder

    def head(seen: Weights, step: int) -> torch.Tensor:
        return seen.kept[step + 1]["value_head.weight"] - seen.kept[step]["value_head.weight"]

    (same, log), (faster, log_of_faster) = steps(None), steps(6e-3)
    torch.testing.assert_close(head(faster, 0), 3 * head(same, 0), rtol=1e-4, atol=1e-9)
    rates = [[row["learning_rate"] for row in each.logs if "learning_rate" in row] for each in (log, log_of_faster)]
    assert rates == [[2e-3, 1e-3]] * 2
    # A value of its own has no way to the policy but the next rollout's advantages, a shared one the next step's.
    for step in (1, 2) if value == "adapter" else (1,):
        policies = [{name: p for name, p in seen.kept[step].items() if ".policy." in name} for seen in (same, faster)]
        assert policies[0] and not moved(*policies)


class Groups(TrainerCallback):
    """Keeps what the optimiser would do to every parameter in each step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, tuple[float, float]]] = []

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.kept.append({
            names[id(parameter)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        })  # fmt: skip


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_all_that_is_the_values_has_its_rate_with_the_same_decay_and_schedule(tmp_path: Path, value: str) -> None:
    kept = []
    for rate in (None, 6e-3):
        groups = Groups()
        trained = trainer(
            tmp_path / str(rate), with_reference(tmp_path), [groups], total_episodes=16, num_mini_batches=1,
            value=value, value_learning_rate=rate, learning_rate=2e-3, weight_decay=0.1,
        )  # fmt: skip
        trained.train()
        kept.append(groups.kept)
    names = {name for name, parameter in trained.model.named_parameters() if parameter.requires_grad}
    of_value = {name for name in names if "value" in name}
    assert len(of_value) == 2 if value == "shared" else len(of_value) > 2
    assert {step[name][1] for step in kept[0] for name in names} == {0.0, 0.1}
    for same, faster, left in zip(*kept, (1.0, 0.5), strict=True):
        assert set(same) == set(faster) == names
        for name in names:
            assert same[name][0] == pytest.approx(2e-3 * left)
            assert faster[name] == (pytest.approx((6e-3 if name in of_value else 2e-3) * left), same[name][1])


def test_a_rate_for_the_value_is_not_for_an_optimiser_that_is_passed(tmp_path: Path) -> None:
    passed = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)

    def made(rate: float | None) -> PPOTrainer:
        return PPOTrainer(
            tiny_policy(), config(tmp_path, value_learning_rate=rate), reward=many_the, train_dataset=PROMPTS,
            processing_class=tiny_tokenizer(), optimizers=(passed, None),
        )  # fmt: skip

    with pytest.raises(InputError, match="has rates already"):
        made(0.5)
    assert made(None).create_optimizer() is passed


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_is_above_0(tmp_path: Path, rate: float) -> None:
    with pytest.raises(InputError, match="value_learning_rate"):
        config(tmp_path, value_learning_rate=rate)


def test_after_a_warm_up_adamw_begins_as_if_there_had_been_none(tmp_path: Path) -> None:
    """A count of steps without gradients would make the first real ones too long."""
    trained = trainer(tmp_path, value_warmup_rollouts=2)
    trained.train()
    policy = [p for name, p in trained.model.named_parameters() if ".policy." in name]
    assert {int(trained.optimizer.state[parameter]["step"]) for parameter in policy} == {4}
