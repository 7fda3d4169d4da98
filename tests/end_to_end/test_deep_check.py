"""Memory as a person meets it: `prefopt check --deep` before and after a run, and what a stage says of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.small import QUICKSTART, SMALL, Finished, environment, prefopt

pytestmark = pytest.mark.slow

RECIPE = """\
name: deep
model: {model_name_or_path: base, lora: {lora_r: 4}}
data:
  texts: {path: toy, name: corpus, max_samples: 60}
  pairs: {path: toy, name: preferences, max_samples: 60}
stages:
  base: {kind: pretrain, data: texts, vocab_size: 320, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1}
  sft: {kind: sft, data: pairs}
  dpo:
    kind: dpo
    init: sft
    data: pairs
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_what_is_not_there_is_stood_in_for_and_nothing_is_written(recipe: Path) -> None:
    done = prefopt("check", recipe, "--deep", "--fit", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in recipe.parent.iterdir()] == ["recipe.yaml"]
    base, sft, dpo = done.stdout.split("\n\n")[-3:]
    assert base.startswith("base: ") and sft.startswith("sft: ") and dpo.startswith("dpo: ")
    assert "note: sft is not there yet: a fresh adapter in its place" in dpo
    assert "note: base is not there yet" in sft and "note: base" not in base
    prompt = next(line for line in dpo.splitlines() if line.startswith("  prompt ("))
    chosen = next(line for line in dpo.splitlines() if line.startswith("  chosen ("))
    assert prompt.split(": ", 1)[1].startswith("<|begin|>│") and prompt.count("<|begin|>") == 1
    assert prompt.endswith("│<|assistant|>") and chosen.endswith("│<|end|>")
    assert "loss 0.6931" in dpo  # the policy is the reference
    assert "policy and reference differ by 0.0e+00" in dpo
    assert "pairs that share their prompts differ by" in dpo
    assert "gradients of earlier passes" in dpo
    # Two rows and four passes are eight rows, which fit at once.
    settings = "--set stages.dpo.per_device_train_batch_size=8 --set stages.dpo.gradient_accumulation_steps=1"
    assert settings in dpo.splitlines()[-1]
    assert "fits as it is" in sft


def test_every_shape_of_a_reward_model_and_what_learns_from_it(recipe: Path) -> None:
    """An ensemble whose adapters have a shape of their own stands in for itself, and PPO is checked with it."""
    recipe.write_text(
        RECIPE.replace("init: sft\n", "init: sft\n    lora: {lora_r: 8}\n")
        + """\
  rewards: {kind: reward, init: dpo, data: pairs, ensemble: 2, lora: {lora_r: 2}}
  heads: {kind: reward, data: pairs, ensemble: 3, ensemble_kind: heads}
  ppo: {kind: ppo, init: dpo, prompts: pairs, reward: {model: rewards}, rollout_batch_size: 8, max_new_tokens: 8}
"""
    )
    done = prefopt("check", recipe, "--deep", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    assert "note: rewards is not there yet: a fresh adapter with a head in its place" in done.stdout
    ppo = done.stdout.split("\n\n")[-1]
    assert ppo.startswith("ppo: ") and "policy and reference differ by" in ppo


def test_what_does_not_fit_is_not_tried(recipe: Path) -> None:
    done = prefopt("check", recipe, "--deep", "--memory", "20MiB", "--json", cwd=recipe.parent)
    assert done.returncode == 3
    assert "stage dpo needs about" in done.stderr and "--fit" in done.stderr
    for stage in json.loads(done.stdout)["deep"]:
        memory = stage["memory"]
        assert memory["fits"] is False and memory["measured"] is None and stage["proofs"] is None
        assert memory["limit"] == 20 * 2**20 < memory["estimate"]


def test_a_template_that_ends_no_answer_is_an_error_and_hides_no_other_stage(recipe: Path) -> None:
    template = recipe.with_name("endless.jinja")
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}")
    done = prefopt("check", recipe, "--deep", "--set", f"model.chat_template={template}", cwd=recipe.parent)
    assert done.returncode == 2
    assert done.stderr.count("EOS") == 2  # of sft and of dpo
    assert "base: " in done.stdout


def test_a_finished_run_is_looked_at_as_it_is(quickstart: Finished) -> None:
    overrides = [word for setting in SMALL for word in ("--set", setting)]
    before = sorted(quickstart.out.rglob("*"))
    done = prefopt("check", QUICKSTART, "--deep", "--json", "--out", quickstart.out, *overrides)
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["deep"]}
    assert list(stages) == ["base", "sft", "reward", "dpo", "ppo"]
    for name, stage in stages.items():
        assert stage["stand_ins"] == [] and stage["problems"] == [] and stage["error"] is None
        assert stage["proofs"]["trained"] > 0 and (stage["proofs"]["frozen"] > 0) == (name != "base")
        assert stage["memory"]["estimate"] == pytest.approx(stage["memory"]["measured"], rel=0.15)
    assert stages["dpo"]["proofs"]["policy_minus_reference"] < 1e-4
    assert stages["ppo"]["proofs"]["policy_minus_reference"] < 1e-3
    assert [phase["name"] for phase in stages["ppo"]["memory"]["phases"]] == ["update", "sampling", "judging"]
    assert sorted(quickstart.out.rglob("*")) == before


def test_flags_of_the_deep_check_need_it(recipe: Path) -> None:
    done = prefopt("check", recipe, "--fit")
    assert done.returncode == 2 and "add --deep" in done.stderr


def test_a_stage_with_room_keeps_what_is_freed(recipe: Path) -> None:
    wide = "--set stages.base.hidden_size=256 --set stages.base.max_steps=1 --set stages.sft.max_steps=2".split()
    env = {name: value for name, value in environment().items() if not name.startswith("MALLOC_")}
    recipe.write_text(RECIPE.partition("  dpo:")[0])
    done = prefopt("run", recipe, "--out", recipe.parent / "run", *wide, cwd=recipe.parent, env=env)
    assert done.returncode == 0, done.stderr
    assert "freed memory is kept for what comes next" in (recipe.parent / "run" / "logs" / "sft.log").read_text()
