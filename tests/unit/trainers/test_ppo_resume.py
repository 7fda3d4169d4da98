"""A PPO run with everything on goes on after a kill as if there had been none, and keeps the policy it is to keep."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from prefopt.errors import DataError, InputError
from prefopt.models.roles import POLICY, adapter_of
from prefopt.records import Score
from prefopt.trainers.guards import GuardLimits
from prefopt.trainers.ppo import PPOTrainer
from tests.tiny import random_rows, tiny_policy, tiny_tokenizer
from tests.unit.trainers.priced import penalties
from tests.unit.trainers.test_ppo import PROMPTS, config, many_the, trainer, weights_hash, with_reference

DEMONSTRATIONS = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in random_rows(7, 3)]
ROLLOUTS = 5


class KilledError(Exception):
    pass


class Kill(TrainerCallback):
    """Ends training in the middle, without a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KilledError


class Policies(TrainerCallback):
    """Keeps the policy of the beginning of every rollout."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % 4 == 0:
            self.kept.append({name: each.clone() for name, each in adapter_of(model.peft, POLICY).tensors.items()})


def disputed(prompts, completions) -> list[Score]:
    """A reward that an ensemble agrees on less, the more of it there is."""
    return [Score(text.count("e"), std=0.1 + 0.3 * text.count("e") ** 2) for text in completions]


def severe(prompts, first, second) -> list[float]:
    """A judge who wants the opposite: fewer."""
    pairs = [(one.count("e"), other.count("e")) for one, other in zip(first, second, strict=True)]
    return [0.5 if one == other else float(one < other) for one, other in pairs]


def everything_on(tmp_path: Path, folder: str, callbacks: Any = (), **more: Any) -> PPOTrainer:
    limits = GuardLimits(max_kl=500.0, max_length=9.0, max_disagreement=90.0, max_doubt=90.0, patience=2)
    options = {
        "normalise": "running", "kl_target": 0.5, "kl_horizon": 100, "select": "bound", "judge_every": 2,
        "guards": limits, "total_episodes": 16 * ROLLOUTS, "samples_per_prompt": 2, "value_warmup_rollouts": 1,
        "entropy_coef": 0.01, "dual_clip": 3.0, "cliprange_high": 0.3, "reward_clip": 3.0, "whiten_rewards": True,
        "stop": ("e th",), "score_prefixes": 3, "value_learning_rate": 2e-3,
        "save_total_limit": None, "uncertainty_weight": 2.0, "total_clip": 4.0,
    }  # fmt: skip
    return PPOTrainer(
        with_reference(tmp_path), config(tmp_path / folder, **{**options, **more}), reward=disputed, judge=severe,
        penalties=penalties(), train_dataset=PROMPTS, demonstrations=DEMONSTRATIONS, processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
    )  # fmt: skip


def state(trained: PPOTrainer) -> str:
    """All that a trainer knows, and the weights."""
    kept = {name: part.state_dict() for name, part in trained._stateful.items()}
    return json.dumps(
        [kept, trained.watch.latest, trained.watch.close_ups, weights_hash(trained.model)], sort_keys=True
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[PPOTrainer, list[dict[str, torch.Tensor]]]:
    policies, folder = Policies(), tmp_path_factory.mktemp("whole")
    trained = everything_on(folder, "run", [policies])
    trained.train()
    return trained, policies.kept


@pytest.mark.parametrize("step", [5, 11, 16])
def test_a_killed_run_with_everything_on_ends_with_the_same_bits(tmp_path: Path, whole, step: int) -> None:
    with pytest.raises(KilledError):
        everything_on(tmp_path, "run", [Kill(step)]).train()
    torch.manual_seed(77)
    random.seed(77)
    resumed = everything_on(tmp_path, "run")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4 * ROLLOUTS
    assert state(resumed) == state(whole[0])


def test_everything_that_was_on_did_something(whole) -> None:
    trained, policies = whole
    assert trained.scale.std != 1 and trained.scale._count == 256 + 16 * ROLLOUTS
    assert trained.kl.coefficient != pytest.approx(0.05)
    weights = [penalty.price.weight for penalty in trained.shaper.penalties]
    assert all(weights) and weights[1] == 0.5 and weights[2] != 0.1
    assert trained.shaper.penalties[0].price.level not in (0, 1)
    assert trained.scale.unit not in (1.0, trained.scale.std)
    assert 0 < trained.watch.guards._averages["judge"] < 1
    assert trained.watch.guards._averages["judge"] != 0.5
    assert {"judge", "bound"} <= set(trained.watch.guards._averages)
    assert len(policies) == ROLLOUTS and trained.watch.guards.reason is None


def test_the_price_and_the_scale_are_in_the_checkpoint(whole) -> None:
    folder = Path(whole[0].args.output_dir)
    kept = [json.loads((folder / f"checkpoint-{4 * n}" / "ppo_state.json").read_text()) for n in range(1, ROLLOUTS + 1)]
    # The value warms up in the first rollout, and the second is still the reference's.
    assert len({each["kl"]["coefficient"] for each in kept}) == ROLLOUTS - 1
    assert [each["scale"]["count"] for each in kept] == [256 + 16 * n for n in range(1, ROLLOUTS + 1)]
    assert all(each["watch"]["guards"]["first"] == kept[0]["watch"]["guards"]["first"] for each in kept)


def test_the_policy_that_is_kept_is_that_of_the_rollout_that_is_named(whole) -> None:
    trained, policies = whole
    best = trained.watch.guards.best
    assert best is not None
    found = adapter_of(trained.model.peft, POLICY).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in policies[best].items())
    same = [n for n, each in enumerate(policies) if all(torch.equal(found[name], each[name]) for name in found)]
    assert best in same and ROLLOUTS - 1 not in same


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_the_judges_favourite_is_kept_although_the_reward_went_on_rising(tmp_path: Path, value: str) -> None:
    policies = Policies()
    trained = PPOTrainer(
        with_reference(tmp_path),
        config(tmp_path, select="judge", judge_every=1, total_episodes=16 * 4, value=value),
        reward=many_the, judge=severe,
        train_dataset=PROMPTS, processing_class=tiny_tokenizer(), callbacks=[policies],
    )  # fmt: skip
    trained.train()
    assert trained.watch.guards.best is not None
    found = adapter_of(trained.model.peft, POLICY).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in policies.kept[trained.watch.guards.best].items())


def test_a_finished_run_that_is_opened_again_has_the_policy_that_was_kept(whole, tmp_path: Path) -> None:
    trained = whole[0]
    again = everything_on(tmp_path, "again")
    again.args.output_dir = trained.args.output_dir
    again.train(resume_from_checkpoint=True)
    assert state(again) == state(trained)


def test_a_run_that_a_guard_ended_does_not_go_on_when_it_is_opened_again(tmp_path: Path) -> None:
    options = {"kl_coefficient": 0.0, "total_episodes": 160, "guards": GuardLimits(max_repetition=None, max_length=0.1,
               patience=2)}  # fmt: skip
    ended = trainer(tmp_path / "run", with_reference(tmp_path), **options)
    ended.train()
    assert ended.state.global_step == 8 and "length" in ended.watch.guards.reason  # two rollouts in a row
    again = trainer(tmp_path / "run", with_reference(tmp_path), **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8 and again.watch.guards.reason == ended.watch.guards.reason
    assert weights_hash(again.model) == weights_hash(ended.model)


def test_a_guard_that_only_warns_lets_the_run_go_on(tmp_path: Path) -> None:
    limits = GuardLimits(max_length=0.1, patience=1)
    options = {"guards": limits, "stop_on_guard": False}
    plain = trainer(tmp_path / "plain", with_reference(tmp_path))
    plain.train()
    warned = trainer(tmp_path / "warned", with_reference(tmp_path), **options)
    warned.train()
    assert warned.state.global_step == 12 and warned.watch.guards.reason.endswith("at rollout 0")
    assert weights_hash(warned.model) == weights_hash(plain.model)


def test_a_run_that_was_asked_to_stop_keeps_its_last_policy_to_go_on_from(tmp_path: Path, whole) -> None:
    from tests.unit.trainers.test_ppo import StopAt

    stopped = everything_on(tmp_path, "run", [StopAt(13)])
    stopped.train()
    assert stopped.state.global_step == 16
    resumed = everything_on(tmp_path, "run")
    resumed.train(resume_from_checkpoint=True)
    assert state(resumed) == state(whole[0])


def test_the_last_healthy_policy_is_given_where_a_guard_ended_the_run_with_its_value(tmp_path: Path) -> None:
    for value in ("adapter", "shared"):
        seen: list[dict[str, torch.Tensor]] = []

        class Trained(TrainerCallback):
            def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
                if state.global_step % 4 == 0:
                    named = model.named_parameters()
                    seen.append({name: each.detach().clone() for name, each in named if each.requires_grad})  # noqa: B023

        ended = trainer(
            tmp_path / value, with_reference(tmp_path), [Trained()], value=value, kl_coefficient=0.0,
            kl_stop_above=0.05, learning_rate=2e-2, total_episodes=160,
        )  # fmt: skip
        ended.train()
        best = ended.watch.guards.best
        assert best is not None and best < len(seen) - 1 and "kl" in ended.watch.guards.reason
        found = {name: each for name, each in ended.model.named_parameters() if each.requires_grad}
        assert all(torch.equal(found[name], tensor) for name, tensor in seen[best].items())
        assert not all(torch.equal(found[name], tensor) for name, tensor in seen[best + 1].items())


@pytest.mark.parametrize(
    "options",
    [{"select": "bound"}, {"guards": GuardLimits(max_disagreement=2.0)}, {"guards": GuardLimits(max_doubt=0.1)}],
)
def test_a_guard_that_can_never_speak_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="ensemble"):
        trainer(tmp_path, **options).train()


def test_a_judge_who_gives_no_probabilities_is_refused(tmp_path: Path) -> None:
    for judge in (lambda prompts, first, second: [2.0] * len(first), lambda prompts, first, second: [0.5]):
        judged = PPOTrainer(
            tiny_policy(), config(tmp_path / "run", judge_every=1), reward=many_the, judge=judge, train_dataset=PROMPTS,
            processing_class=tiny_tokenizer(),
        )  # fmt: skip
        with pytest.raises(DataError, match="probabilities"):
            judged.train()


def test_nothing_is_dropped_out_also_where_the_adapter_says_so(tmp_path: Path) -> None:
    policy = tiny_policy()
    for name, module in list(policy.named_modules()):
        if name.endswith("lora_dropout"):
            for key in list(module):
                module[key] = torch.nn.Dropout(0.5)
    first = trainer(tmp_path / "dropout", policy, num_mini_batches=1, per_device_train_batch_size=16)
    first.train()
    ratios = [row["ppo/ratio"] for row in first.state.log_history if "ppo/ratio" in row]
    assert ratios[0] == pytest.approx(1, abs=1e-5)
    plain = trainer(tmp_path / "plain", num_mini_batches=1, per_device_train_batch_size=16)
    plain.train()
    assert weights_hash(first.model) == weights_hash(plain.model)
