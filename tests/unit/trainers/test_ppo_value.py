"""What trains PPO's value: alone at first where asked for, and at a rate of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

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
    """AdamW's first step goes as far as its rate says, and in the second the linear schedule has halved both."""

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


def test_an_optimiser_that_is_passed_keeps_its_rates(tmp_path: Path) -> None:
    model = tiny_policy()
    passed = torch.optim.SGD(model.parameters(), lr=1e-3)
    trained = PPOTrainer(
        model, config(tmp_path, value_learning_rate=0.5), reward=many_the, train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(), optimizers=(passed, None),
    )  # fmt: skip
    assert [group["lr"] for group in trained.create_optimizer().param_groups] == [1e-3]


def test_after_a_warm_up_adamw_begins_as_if_there_had_been_none(tmp_path: Path) -> None:
    """A count of steps without gradients would make the first real ones too long."""
    trained = trainer(tmp_path, value_warmup_rollouts=2)
    trained.train()
    policy = [p for name, p in trained.model.named_parameters() if ".policy." in name]
    assert {int(trained.optimizer.state[parameter]["step"]) for parameter in policy} == {4}
