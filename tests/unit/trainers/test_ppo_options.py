"""PPO's options, each by what it must and must not do to what is trained."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefopt.errors import InputError
from prefopt.losses import ppo
from prefopt.models.actor_critic import Ask
from prefopt.recipe.options.penalties import BannedPenalty, MissingEosPenalty
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.penalties import Penalty
from prefopt.trainers import ppo_metrics
from prefopt.trainers.guards import GuardLimits
from prefopt.trainers.ppo import PPOTrainer
from tests.tiny import random_rows, tiny_llama, tiny_policy, tiny_tokenizer
from tests.unit.trainers.test_ppo import PROMPTS, Recorder, config, many_the, move_policy, trainer, with_reference

DEMONSTRATIONS = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in random_rows(7, 3)]


def weights(trained: PPOTrainer, what: str) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.model.named_parameters() if what in name}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_where_all_completions_are_cut_masking_them_trains_nothing(tmp_path: Path, value: str) -> None:
    def run(folder: str, mask: bool) -> tuple[PPOTrainer, dict[str, torch.Tensor]]:
        recorder = Recorder()
        options = {"mask_truncated_completions": mask, "max_new_tokens": 2, "min_new_tokens": 2, "value": value}
        trained = trainer(tmp_path / folder, with_reference(tmp_path), [recorder], total_episodes=32, **options)
        before = weights(trained, "")
        trained.train()
        assert all(math.isfinite(number) for row in recorder.logs for number in row.values())
        assert not any(sample["finished"] for sample in trained.watch.latest)
        return trained, before

    masked, before = run("masked", mask=True)
    assert not moved(before, weights(masked, ""))
    plain, before = run("plain", mask=False)
    assert moved(before, weights(plain, ".policy."))


def test_masked_completions_are_not_learned_from_but_seen(tmp_path: Path) -> None:
    def long(prompts, completions) -> list[float]:
        return [float(len(text)) for text in completions]

    options = {"mask_truncated_completions": True, "stop": ("e",)}
    trained = trainer(tmp_path, with_reference(tmp_path), reward=long, **options)
    trained._normalise_by_reference()
    rollout = trained.collect_rollout(0)
    finished = torch.tensor([sample.finished for sample in rollout.samples])
    assert 0 < int(finished.sum()) < len(finished)
    episodes = rollout.episodes
    assert torch.equal(episodes.learned, episodes.mask * finished[:, None])
    assert not episodes.advantages[~finished].any()
    assert float(ppo.masked_mean(episodes.advantages, episodes.learned)) == pytest.approx(0, abs=1e-5)
    assert float(episodes.advantages[episodes.learned.bool()].var(correction=0)) == pytest.approx(1, abs=1e-3)
    assert bool((rollout.rewards[~finished] != 0).any())


def test_samples_of_a_prompt_stand_beside_each_other_and_differ(tmp_path: Path) -> None:
    trained = trainer(tmp_path, samples_per_prompt=4)
    for number in range(3):
        rollout = trained.collect_rollout(number)
        ids = [tuple(row["prompt_ids"]) for row in rollout.rows]
        assert all(len(set(ids[start : start + 4])) == 1 for start in range(0, 16, 4))
        assert len({sample.ids for sample in rollout.samples}) > 4
    everyone = [tuple(row["prompt_ids"]) for n in range(5) for row in trained._prompts_of(n, 16, 5)]
    assert {everyone.count(ids) for ids in everyone} == {16}  # 20 turns over 5 prompts, 4 samples each
    with pytest.raises(InputError, match="samples_per_prompt"):
        config(tmp_path, samples_per_prompt=3)


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_log_probabilities_of_sampling_train_as_those_of_a_pass_of_their_own(tmp_path: Path, value: str) -> None:
    trained, logs = [], []
    for reuse in (True, False):
        recorder = Recorder()
        # Plain steps: AdamW's first ones are the gradient's sign, which rounding decides where that is about 0.
        options = {"reuse_sampling_logps": reuse, "optim": "sgd", "learning_rate": 0.5, "value": value}
        trained.append(trainer(tmp_path / str(reuse), with_reference(tmp_path), [recorder], temperature=0.7, **options))
        before = weights(trained[-1], ".policy.")
        trained[-1].train()
        assert moved(before, weights(trained[-1], ".policy."))
        logs.append(recorder.logs)
    one, other = (weights(each, "") for each in trained)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4
    assert [each["completion"] for each in trained[0].watch.latest] == [
        each["completion"] for each in trained[1].watch.latest
    ]
    mismatches = [row["ppo/sampling_mismatch"] for rows in logs for row in rows if "ppo/sampling_mismatch" in row]
    assert len(mismatches) == 6 and 0 < max(mismatches) < 1e-4


@pytest.mark.parametrize("value", ["adapter", "shared"])
@pytest.mark.parametrize("reuse", [True, False])
def test_what_sampling_said_saves_the_policys_pass(tmp_path: Path, value: str, reuse: bool) -> None:
    trained = trainer(tmp_path, with_reference(tmp_path), reuse_sampling_logps=reuse, value=value)
    rows, forward = [], trained.model.forward

    def counted(input_ids: torch.Tensor, *arguments: Any) -> Any:
        rows.append(len(input_ids) if arguments[-1].role == "policy" else 0)
        return forward(input_ids, *arguments)

    trained.model.forward = counted
    said = trained.collect_rollout(0).said
    assert sum(rows) == (2 if reuse else 16)  # every eighth is checked
    assert said.values.shape == said.logps.shape


def test_a_rollout_is_looked_at_without_dropout(tmp_path: Path) -> None:
    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.5)
    model = get_peft_model(tiny_llama(), lora, adapter_name="policy")
    trained = trainer(tmp_path, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.policy" in name:
                parameter.normal_(std=0.1)
    trained.model.train()
    assert trained.collect_rollout(0).said.mismatch < 1e-4
    assert trained.model.training


def test_tokens_that_are_forbidden_leave_every_metric_finite(tmp_path: Path) -> None:
    recorder, model = Recorder(), tiny_policy()
    model.get_base_model().generation_config.eos_token_id = list(range(0, 300, 2))  # about half of all probability
    trainer(tmp_path, model, [recorder], min_new_tokens=6, total_episodes=16).train()
    assert all(math.isfinite(number) for row in recorder.logs for number in row.values())
    assert recorder.logs[0]["ppo/sampling_mismatch"] < 1e-4


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_kl_that_is_a_loss_is_not_in_the_reward_and_keeps_the_policy_near(tmp_path: Path, estimator: str) -> None:
    ends = {}
    for coefficient in (0.0, 1.0):
        recorder = Recorder()
        options = {"kl_apply": "loss", "kl_estimator": estimator, "kl_coefficient": coefficient}
        more = {"total_episodes": 16 * 3, "learning_rate": 3e-2, "normalise": "none", "missing_eos_penalty": 0.0}
        trained = trainer(tmp_path / str(coefficient), callbacks=[recorder], **options, **more)
        trained.train()
        rows = [row for row in recorder.logs if "ppo/kl" in row]
        assert all(row["ppo/reward"] == pytest.approx(row["ppo/score"], abs=1e-4) for row in rows)
        ends[coefficient] = rows[-1]["ppo/exact_kl"]
    assert 0 <= ends[1.0] < 0.5 * ends[0.0]


def test_the_wrong_estimator_is_refused(tmp_path: Path) -> None:
    for apply, estimator in (("reward", "k2"), ("reward", "k3"), ("loss", "k1")):
        with pytest.raises(InputError, match="wrong gradient"):
            config(tmp_path, kl_apply=apply, kl_estimator=estimator)


def test_with_an_advantage_of_zero_what_is_left_is_the_likelihood_of_the_demonstrations(tmp_path: Path) -> None:
    rate, weight, per_step = 0.1, 0.7, 8
    trained = PPOTrainer(
        tiny_policy(),
        config(
            tmp_path, normalise="none", kl_coefficient=0.0, missing_eos_penalty=0.0, ptx_coef=weight, optim="sgd",
            learning_rate=rate, lr_scheduler_type="constant", max_grad_norm=1e9, temperature=0.7,
        ),
        reward=lambda prompts, completions: [0.0] * len(completions), train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(), demonstrations=DEMONSTRATIONS,
    )  # fmt: skip
    trained.train()

    plain = tiny_policy()
    adapter = [p for name, p in plain.named_parameters() if ".policy." in name]
    for step in range(trained.state.max_steps):
        rows, tokens = [], 0
        for number in range(2):  # passes of 4
            part, tokens = trained._demonstrations.of_pass(step, number, 2)
            rows += [(ids[seen.bool()], int(mask.sum())) for ids, seen, mask in zip(
                part.input_ids, part.attention_mask, part.mask, strict=True)]  # fmt: skip
        assert len(rows) == per_step and sum(count for _, count in rows) == tokens
        plain.zero_grad()
        for ids, count in rows:
            logps = plain(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            (-weight * logps[-count:].sum() / tokens).backward()
        with torch.no_grad():
            for parameter in adapter:
                parameter -= rate * parameter.grad
    found = weights(trained, ".policy.")
    assert moved({f"peft.{name}": p for name, p in tiny_policy().named_parameters() if ".policy." in name}, found)
    for name, parameter in plain.named_parameters():
        if ".policy." in name:
            assert torch.allclose(found[f"peft.{name}"], parameter, atol=1e-5), name


def test_demonstrations_come_once_each_before_any_comes_again(tmp_path: Path) -> None:
    from prefopt.trainers.demonstrations import Demonstrations

    demonstrations = Demonstrations(DEMONSTRATIONS, 4, 0, 0)
    for passes in (1, 2, 4):
        shown = []
        for step in range(7):
            parts = [demonstrations.of_pass(step, number, passes) for number in range(passes)]
            assert len({tokens for _, tokens in parts}) == 1
            assert parts[0][1] == sum(int(part.mask.sum()) for part, _ in parts)
            shown += sorted(tuple(row.tolist()) for part, _ in parts for row in part.completions)
        assert len(shown) == 28  # 4 times 7


def test_running_normalisation_does_not_move_the_guards_unit(tmp_path: Path) -> None:
    """A score of 100 ± 1 would otherwise look as if it changed by many deviations."""
    seen = []

    def far(prompts, completions) -> list[float]:
        return [100.0 + text.count("e") * (1 + len(seen)) for text in completions]

    trained = trainer(tmp_path, reward=far, normalise="running", total_episodes=64)
    see = trained.watch.guards.see
    trained.watch.guards.see = lambda number, health: (seen.append(health), see(number, health))[1]
    trained.train()
    unit = trained.scale.unit
    assert unit != pytest.approx(trained.scale.std, rel=0.05)
    assert seen[-1].score == pytest.approx(sum(e["reward"] for e in trained.watch.latest) / 16 / unit, rel=1e-4)


def test_an_adaptive_price_follows_and_is_that_of_the_rollout(tmp_path: Path) -> None:
    recorder = Recorder()
    options = {"kl_target": 0.5, "kl_horizon": 40, "kl_coefficient": 0.1, "total_episodes": 16 * 5}
    trained = trainer(tmp_path, callbacks=[recorder], **options)
    trained.train()
    rows = [row for row in recorder.logs if "ppo/kl" in row]
    price = 0.1
    for number, row in enumerate(rows):
        assert row["ppo/kl_coefficient"] == pytest.approx(price)
        if number:  # the first rollout is the reference's own
            price *= 1 + min(max(row["ppo/kl"] / 0.5 - 1, -0.2), 0.2) * 16 / 40
    assert trained.kl.coefficient == pytest.approx(price)
    assert len({row["ppo/kl_coefficient"] for row in rows}) == 4


def test_the_terms_of_a_close_up_add_up_whether_rewards_are_whitened_or_not(tmp_path: Path) -> None:
    for whiten in (False, True):
        trained = trainer(tmp_path, with_reference(tmp_path), kl_coefficient=0.3, whiten_rewards=whiten)
        trained._normalise_by_reference()
        move_policy(trained)
        rollout = trained.collect_rollout(0)
        ups = ppo_metrics.close_ups(rollout, trained.processing_class, 0)
        assert 1 < len(ups) <= ppo_metrics.CLOSE_UPS
        for up in ups:
            assert up["terms"]["kl"] == pytest.approx(-0.3 * sum(token["kl"] for token in up["tokens"]), abs=1e-4)
        scores = [up["score"] for up in ups]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == float(rollout.scores.values.max()) and scores[-1] == float(rollout.scores.values.min())


def test_an_entropy_bonus_keeps_the_policy_open(tmp_path: Path) -> None:
    found = {}
    for bonus in (0.0, 1.0):
        options = {"total_episodes": 16 * 2, "temperature": 0.7, "learning_rate": 3e-2}
        trained = trainer(tmp_path / str(bonus), entropy_coef=bonus, **options)
        trained.train()
        batch = trained.collect_rollout(99).episodes
        with torch.no_grad():
            said = trained.model(batch.input_ids, batch.attention_mask, batch.prompt_length, Ask("policy", 0.7))
        found[bonus] = float(ppo.masked_mean(said.entropy, batch.mask))
    assert found[1.0] > found[0.0] + 0.05


def test_arguments_can_be_written_as_json(tmp_path: Path) -> None:
    """Trackers of transformers do it."""
    args: Any = config(tmp_path, guards=GuardLimits(max_kl=3.0))
    assert "max_kl" in args.to_json_string()


@pytest.mark.parametrize(("prefixes", "step"), [(6, 1), (2, 3), (100, 1)])
def test_beginnings_are_scored_where_they_were_asked_for(tmp_path: Path, prefixes: int, step: int) -> None:
    asked: list[tuple[object, str]] = []

    def letters(prompts: Any, texts: Any) -> list[float]:
        asked.extend(zip(prompts, texts, strict=True))
        return [float(len(text)) for text in texts]

    trained = trainer(tmp_path, with_reference(tmp_path), reward=letters, score_prefixes=prefixes)
    rows = [trained.prompts[number % len(trained.prompts)] for number in range(5)]
    samples, _ = trained.explorer.answers(rows, 3)
    asked.clear()
    potentials = trained.explorer.potentials(rows, samples)
    assert potentials.shape == (5, max(len(sample.ids) for sample in samples))
    expected = []
    for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        for t in range(len(sample.ids)):
            text = trained.processing_class.decode(sample.ids[: t - t % step], skip_special_tokens=True)
            assert float(potentials[number, t]) == len(text)
            if t % step == 0:
                expected.append((row["prompt"], text))
        assert bool((potentials[number, len(sample.ids) :] == 0).all())
    assert asked == expected


def test_a_penalty_is_paid_where_it_is_caused_as_the_score_is_earned(tmp_path: Path) -> None:
    vowels = BannedPenalty(cost="banned", patterns=("[aeiou]",), saturation=4, weight=0.5)
    end = MissingEosPenalty(cost="missing_eos", weight=2.0)  # a beginning has no end to miss
    trained = PPOTrainer(
        with_reference(tmp_path), config(tmp_path, score_prefixes=100, kl_coefficient=0.0, missing_eos_penalty=0.0),
        reward=many_the, train_dataset=PROMPTS, processing_class=tiny_tokenizer(),
        penalties=[Penalty.of(each, rule_cost(each)) for each in (vowels, end)],
    )  # fmt: skip
    made = trained.collect_rollout(0)
    hits = 0
    for number, sample in enumerate(made.samples):
        texts = [
            trained.processing_class.decode(sample.ids[:t], skip_special_tokens=True) for t in range(len(sample.ids))
        ]
        paid = [0.5 * min(1.0, sum(letter in "aeiou" for letter in text.lower()) / 4) for text in texts]
        scores = trained.scale.scaled(torch.tensor(many_the([()] * len(texts), texts)))
        worth = [*(scores * 1.0 - torch.tensor(paid)).tolist()[1:], float(made.shaped.total[number])]
        gained = [worth[0], *(after - before for before, after in itertools.pairwise(worth))]
        assert made.rewards[number, : len(sample.ids)].tolist() == pytest.approx(gained, abs=1e-5)
        hits += sum(after > before for before, after in itertools.pairwise(paid))
    assert hits > 3, "hardly anything was banned on the way"


def test_with_beginnings_scored_an_episode_has_the_same_reward(tmp_path: Path) -> None:
    sums = []
    for prefixes in (0, 6):
        folder = tmp_path / f"{prefixes}"
        options = {"kl_coefficient": 0.05, "reward_clip": 1.0, "score_prefixes": prefixes}
        trained = trainer(folder, with_reference(folder), **options)
        trained._normalise_by_reference()
        move_policy(trained)
        sums.append(trained.collect_rollout(0).rewards.sum(1))
    torch.testing.assert_close(sums[0], sums[1], atol=1e-5, rtol=1e-5)
