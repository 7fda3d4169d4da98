"""Stages that learn from rewards or marks: what one kind shares with another, and what it says of the rest."""

from __future__ import annotations

from typing import get_args

import pytest

from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.load import load
from prefopt.recipe.rounds import unroll
from prefopt.recipe.schema import POLICY_KINDS, GRPOSpec, OnlineSpec, PPOSpec, RLOOSpec
from prefopt.store.files import sha256_json

KEY_OF_PPO = "c1564397bc295345c37e464f7f4eab469fb4a698e00f0c13abdb42731cc521be"
POLICY = "policy: {kind: ppo, init: sft, prompts: asked, reward: rm"
MARKED = "  marked: {kind: kto, init: sft, data: pairs}\n"


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_word_changes_the_algorithm(write, chain, kind):
    loaded = load(write(chain.replace("kind: ppo", f"kind: {kind}")))
    before = load(write(chain)).recipe.stages["policy"]
    policy = loaded.recipe.stages["policy"]
    assert loaded.warnings == () and isinstance(policy, OnlineSpec) and policy.samples_per_prompt == 8
    shared = set(OnlineSpec.model_fields) - {"kind", "samples_per_prompt"}
    assert {name: getattr(policy, name) for name in shared} == {name: getattr(before, name) for name in shared}
    assert policy.kl.coefficient == before.kl.coefficient


def test_a_group_is_of_the_names_of_trl(write, chain):
    more = ", loss_type: grpo, scale_rewards: none, num_iterations: 2, kl: {apply: loss, estimator: k3}"
    spec = load(write(chain.replace(POLICY, POLICY.replace("ppo", "grpo") + more))).recipe.stages["policy"]
    assert isinstance(spec, GRPOSpec) and spec.rows_per_step == 128 and spec.kl.apply == "loss"
    more = ", normalize_advantages: true, kl: {apply: reward, estimator: k1, coefficient: 0.1}"
    spec = load(write(chain.replace(POLICY, POLICY.replace("ppo", "rloo") + more))).recipe.stages["policy"]
    assert isinstance(spec, RLOOSpec) and spec.kl.coefficient == 0.1


@pytest.mark.parametrize(
    ("kind", "more", "key", "message", "remedy"),
    [
        ("rloo", "samples_per_prompt: 1", "samples_per_prompt", "no other to be compared", "2 or more"),
        ("rloo", "samples_per_prompt: 3", "samples_per_prompt", "no whole number of prompts", "divides 128"),
        ("grpo", "num_mini_batches: 3", "rollout_batch_size", "3 equal minibatches", "multiple of 3"),
        ("grpo", "total_episodes: 64", "total_episodes", "less than one rollout", "lower"),
        ("rloo", "num_ppo_epochs: none", "num_iterations", "must be a whole number", ""),
        ("rloo", "num_ppo_epoch: 2", "num_ppo_epoch", "unknown key", "'num_ppo_epochs'"),
        ("grpo", "beta: 0.1", "beta", "no such key", "here it is 'kl'"),
        ("rloo", "num_train_epochs: 2", "num_train_epochs", "no such key", "pretrain, sft"),
        ("grpo", "loss_type: cispo", "loss_type", "must be one of dapo, grpo, dr_grpo, bnpo", ""),
        ("grpo", "epsilon: 0.1", "epsilon", "a name of TRL", "'cliprange'"),
        ("grpo", "num_generations: 4", "num_generations", "a name of TRL", "'samples_per_prompt'"),
        ("grpo", "kl: {apply: nowhere}", "kl.apply", "must be one of loss", ""),
        ("rloo", "kl: {estimator: k4}", "kl.estimator", "must be one of k1", ""),
        ("rloo", "kl: {coeficient: 1.0}", "kl.coeficient", "unknown key", "'coefficient'"),
    ],
)
def test_what_a_kind_cannot_do_is_said_in_a_line(problems, chain, kind, more, key, message, remedy):
    found = problems(chain.replace(POLICY, f"{POLICY.replace('ppo', kind)}, {more}"))
    said = str(found[f"stages.policy.{key}"])
    assert message in said and remedy in said and "\n" not in said
    assert len(found) == 1


def test_without_a_pull_every_kind_warns(write, chain):
    for kind in ("ppo", "grpo", "rloo"):
        (warning,) = load(
            write(chain.replace(POLICY, f"{POLICY.replace('ppo', kind)}, kl: {{coefficient: 0}}"))
        ).warnings
        assert "drifts" in warning


def test_every_policy_can_be_started_from_answer_and_be_carried_through_rounds(write, rounds):
    for kind in set(POLICY_KINDS) - {"sft", "dpo"}:
        text = rounds.replace("kind: ppo", f"kind: {kind}")
        if kind == "kto":
            text = text.replace("prompts: asked, reward: rm}\n  eval", "data: pairs}\n  eval")
        if kind == "distill":
            text = text.replace("reward: rm}\n  eval", "reward: rm, target: sample, replay_share: 0}\n  eval")
        recipe = load(write(text)).recipe
        assert recipe.stages["policy@2"].init == "policy@1" and unroll(recipe) == recipe


def test_kto_takes_pairs_and_marks_and_nothing_else(write, problems, chain):
    assert load(write(chain + MARKED)).recipe.stages["marked"].loss_type == "kto"
    found = problems(chain + MARKED.replace("data: pairs", "data: demos"))
    assert "learns from pairs, or from completions with a `label`" in str(found["stages.marked.data"])
    found = problems(chain + MARKED.replace("}", ", per_device_train_batch_size: 1}"))
    assert "the other rows of a pass" in str(found["stages.marked.per_device_train_batch_size"])
    load(write(chain + MARKED.replace("}", ", per_device_train_batch_size: 1, loss_type: apo_zero_unpaired}")))


def test_marked_rows_are_demonstrations_and_no_pairs(write, problems, chain, tmp_path):
    (tmp_path / "marked.jsonl").write_text("")
    text = chain.replace("  asked:", "  marks: {path: marked.jsonl, format: unpaired}\n  asked:")
    load(write(text.replace("kind: sft, data: demos", "kind: sft, data: marks")))
    found = problems(text.replace("kind: dpo, init: sft, data: pairs", "kind: dpo, init: sft, data: marks"))
    assert "marked as good or bad" in str(found["stages.dpo.data"])


def test_the_key_of_a_ppo_stage_is_what_it_was():
    """Artefacts that exist are found again: another name or default would be another key."""
    spec = PPOSpec.model_validate({"kind": "ppo", "prompts": "asked", "reward": "rm"})
    assert len(spec_for_key(spec)) == len(PPOSpec.model_fields) - 8  # what changes no numbers, or is not used
    assert sha256_json(spec_for_key(spec)) == KEY_OF_PPO


def test_estimators_are_those_of_the_kind():
    for spec, can in ((GRPOSpec, ("loss", "k3")), (RLOOSpec, ("reward", "k1"))):
        kl = spec.model_fields["kl"].annotation
        assert (get_args(kl.model_fields["apply"].annotation), get_args(kl.model_fields["estimator"].annotation)) == (
            (can[0],), (can[1],),
        )  # fmt: skip
