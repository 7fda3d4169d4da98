"""PPO that goes over earlier rollouts again: what it remembers, how it judges them, and that a kill loses none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt.errors import InputError
from prefopt.losses import ppo
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.replay import REPLAY_FILE, Remembered, Replay
from prefopt.trainers.rollouts import Rollouts
from tests.unit.trainers.test_ppo import Recorder, config, move_policy, trainer, weights_hash
from tests.unit.trainers.test_ppo_resume import Kill, KilledError, everything_on, state

# Two epochs of two minibatches over the new rollout, and as many over earlier ones.
REPLAY = {"replay_epochs": 2, "score_prefixes": 2}
STEPS = 8


def rollout(number: int) -> tuple[Rollouts, torch.Tensor, torch.Tensor | None]:
    """Episodes that are known by their number."""
    ids, mask = torch.full((2, 5), number), torch.ones(2, 3)
    episodes = Rollouts(ids, torch.ones(2, 5, dtype=torch.long), mask, mask, *[torch.full((2, 3), float(number))] * 5)
    return episodes, torch.full((2,), float(number)), None if number % 2 else torch.full((2, 3), float(number))


def numbers(replay: Replay, draws: int = 300) -> list[int]:
    return [int(replay.draw(seed).totals[0]) for seed in range(draws)]


def filled(size: int, count: int) -> Replay:
    replay = Replay(size)
    for number in range(count):
        replay.add(*rollout(number))
    return replay


def looked_at(directory: Path, **more) -> tuple[PPOTrainer, Rollouts]:
    """A trainer that remembers one rollout, and its episodes as they were judged at first."""
    trained = trainer(directory, **{**REPLAY, "rollout_batch_size": 16, **more})
    episodes = trained.collect_rollout(0).episodes
    trained._kl_price = trained.kl.coefficient
    return trained, episodes


def test_every_rollout_is_drawn_as_often_and_the_seed_decides() -> None:
    replay = filled(8, 4)
    drawn = numbers(replay)
    assert drawn == numbers(replay)
    counts = torch.bincount(torch.tensor(drawn))
    assert len(counts) == 4 and counts.min() > 50  # 75 are expected, and 50 are 3.3 deviations below


def test_the_oldest_are_forgotten() -> None:
    assert set(numbers(filled(3, 7))) == {4, 5, 6}
    assert len(filled(0, 7)) == 0


def test_what_depends_on_the_policy_of_then_is_not_remembered() -> None:
    episodes, totals, potentials = rollout(4)
    kept = filled(1, 5).draw(0)
    assert torch.equal(kept.episodes.input_ids, episodes.input_ids) and torch.equal(kept.totals, totals)
    assert kept.potentials is not None and potentials is not None and torch.equal(kept.potentials, potentials)
    assert torch.equal(kept.episodes.logps, episodes.logps)
    assert not kept.episodes.values.any() and not kept.episodes.advantages.any() and not kept.episodes.returns.any()


@pytest.mark.parametrize("count", [0, 1, 12])
def test_what_is_remembered_survives_in_its_order(tmp_path: Path, count: int) -> None:
    replay, again = filled(64, count), filled(64, 2)
    replay.save(tmp_path)
    assert (tmp_path / REPLAY_FILE).exists() == (count > 0)
    again.load(tmp_path)
    assert len(again) == count
    for seed in range(20 if count else 0):
        one, other = replay.draw(seed), again.draw(seed)
        assert one.to_tensors().keys() == other.to_tensors().keys()
        assert all(torch.equal(each, other.to_tensors()[name]) for name, each in one.to_tensors().items())
    assert set(numbers(again)) == set(range(count)) if count else True


def test_a_rollout_is_read_as_it_was_written() -> None:
    kept = Remembered(*rollout(1))
    assert kept.potentials is None and Remembered.of_tensors(kept.to_tensors()).potentials is None


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_a_policy_that_did_not_move_judges_a_rollout_as_at_first(tmp_path: Path, value: str) -> None:
    trained, episodes = looked_at(tmp_path, value=value, mask_truncated_completions=True)
    again = trained._judged_anew(3)
    for name in ("input_ids", "mask", "learned"):
        assert torch.equal(getattr(again, name), getattr(episodes, name)), name
    assert not torch.equal(episodes.learned, episodes.mask)  # what was masked out stays so
    for name in ("logps", "reference_logps", "values", "advantages", "returns"):
        assert torch.allclose(getattr(again, name), getattr(episodes, name), atol=1e-4), name
    weight = trained._averages.take(lambda each: each)["ppo/replay_weight"]
    assert weight == pytest.approx(1, abs=1e-5)


def test_a_policy_that_moved_judges_anew(tmp_path: Path) -> None:
    """Advantages are those of the KL, the value and the price of now, times how much likelier tokens have become."""
    trained, episodes = looked_at(tmp_path, score_prefixes=0, kl_coefficient=0.3)
    move_policy(trained)
    torch.nn.init.normal_(trained.model.value_head.weight, std=0.3)
    trained._kl_price = 2.0
    again, totals = trained._judged_anew(3), trained._replay.draw(3).totals

    said = trained.explorer.look_again(episodes)
    kl = (said.logps - said.reference_logps) * said.mask
    assert float(kl.abs().max()) > 0.05 and float(said.values.abs().max()) > 0.01
    rewards = -2.0 * kl
    last = said.mask.sum(1).long() - 1
    rewards[torch.arange(len(last)), last] += totals
    advantages, returns = ppo.gae(rewards, said.values, said.mask, 1.0, 0.95)
    times = torch.exp(said.logps - episodes.logps).clamp(max=2.0)
    assert torch.allclose(again.returns, returns, atol=1e-5)
    assert torch.allclose(again.logps, said.logps, atol=1e-6) and not torch.allclose(
        again.logps, episodes.logps, atol=0.01
    )
    assert torch.allclose(again.advantages, ppo.masked_whiten(advantages, times) * times, atol=1e-4)
    # What it was better or worse on the whole than what is sampled now says nothing of its tokens.
    assert float(again.advantages.sum()) == pytest.approx(0, abs=1e-3)


def test_the_episodes_of_an_update_are_those_that_were_drawn(tmp_path: Path) -> None:
    recorder = Recorder()
    trained = trainer(tmp_path, callbacks=[recorder], total_episodes=80, replay_rollouts=2, **REPLAY)
    trained.train()
    assert trained.state.global_step == 5 * STEPS and len(trained._replay) == 2
    weights = [row["ppo/replay_weight"] for row in recorder.logs if "ppo/replay_weight" in row]
    assert weights[0] == pytest.approx(1, abs=0.1) and len(set(weights)) > 5
    # The first pass after a rollout was judged anew is about the policy of now.
    starts = [row for row in recorder.logs if row["step"] % STEPS in (5, 7) and "ppo/approx_kl" in row]
    assert len(starts) == 10 and all(row["ppo/clip_fraction"] < 0.2 for row in starts)


def test_without_replay_nothing_is_remembered_or_told(tmp_path: Path) -> None:
    recorder = Recorder()
    trained = trainer(tmp_path, callbacks=[recorder])
    trained.train()
    assert len(trained._replay) == 0 and not list(tmp_path.rglob(REPLAY_FILE))
    assert all("ppo/replay_weight" not in row for row in recorder.logs)


def test_it_learns_from_earlier_rollouts_what_the_newest_did_not_teach(tmp_path: Path) -> None:
    """As many new episodes, and more from each of them."""
    options = {
        "num_ppo_epochs": 1, "num_mini_batches": 1, "rollout_batch_size": 32, "per_device_train_batch_size": 32,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "total_episodes": 320, "kl_coefficient": 0.01,
    }  # fmt: skip
    ends = []
    for epochs in (0, 3):
        recorder = Recorder()
        trainer(tmp_path / str(epochs), callbacks=[recorder], replay_epochs=epochs, **options).train()
        scores = [row["ppo/score"] for row in recorder.logs if "ppo/score" in row]
        assert scores[0] == 0.25
        ends.append(sum(scores[-2:]) / 2)
    assert ends[1] > ends[0] + 0.7, ends  # 3.4 and 2.0; with other seeds 2.4 and 1.1, 2.4 and 0.3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PPOTrainer:
    folder = tmp_path_factory.mktemp("whole")
    trained = everything_on(folder, "run", replay_rollouts=3, save_steps=STEPS, **REPLAY)
    trained.train()
    return trained


@pytest.mark.parametrize("step", [2 * STEPS + 1, 4 * STEPS + 5])
def test_a_run_that_was_killed_goes_over_the_same_rollouts_again(tmp_path: Path, whole: PPOTrainer, step: int) -> None:
    more = {"replay_rollouts": 3, "save_steps": STEPS, **REPLAY}
    with pytest.raises(KilledError):
        everything_on(tmp_path, "run", [Kill(step)], **more).train()
    assert (tmp_path / "run" / f"checkpoint-{step // STEPS * STEPS}" / REPLAY_FILE).exists()
    resumed = everything_on(tmp_path, "run", **more)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 5 * STEPS
    assert state(resumed) == state(whole) and len(resumed._replay) == 3
    assert weights_hash(resumed.model) == weights_hash(whole.model)


@pytest.mark.parametrize("options", [{"replay_epochs": -1}, {"replay_rollouts": 0}])
def test_numbers_that_mean_nothing_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="replay_epochs"):
        config(tmp_path, **options)
