"""One line of a recipe changes the algorithm, and everything around it stays: evaluation, gates, resume, report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from prefopt.recipe.load import load
from prefopt.store import manifest as manifests
from prefopt.tracking.metrics import describe
from tests.end_to_end.small import QUICKSTART, STAGES, Warm, folder, wait_until, words, worker_pid

pytestmark = pytest.mark.slow

RECIPE = """\
name: one-line
model: {model_name_or_path: base, lora: {lora_r: 4}}
data:
  texts: {path: toy, name: corpus, max_samples: 60}
  pairs: {path: toy, name: preferences, max_samples: 60}
stages:
  base: {kind: pretrain, data: texts, vocab_size: 320, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1,
    max_steps: 8}
  sft: {kind: sft, data: pairs, max_steps: 8}
  reward: {kind: reward, init: sft, data: pairs, max_steps: 4}
  policy:
    kind: ppo
    init: sft
    prompts: pairs
    reward: reward
    kl: {coefficient: 0.02, apply: reward, stop_above: 1000}
    guards: {action: warn}
    num_ppo_epochs: 2
    total_episodes: 24
    rollout_batch_size: 8
    samples_per_prompt: 4
    num_mini_batches: 2
    per_device_train_batch_size: 4
    max_new_tokens: 8
    save_steps: 1
    logging_steps: 1
    keep_adapters: true
    require: {ppo/episodes: {min: 24}}
  next: {kind: dpo, init: policy, data: pairs, max_steps: 2}
  eval:
    kind: evaluate
    policies: [sft, policy, next]
    baseline: sft
    prompts: pairs
    reward: gold
    proxy: reward
    checkpoints: true
    suites: [win_rate, kl, overoptimisation]
    max_prompts: 6
    max_new_tokens: 8
    require: {"policy:gold": {min: -1000}}
"""
MARKED = """\
  policy:
    kind: kto
    init: sft
    data: pairs
    max_steps: 4
    per_device_train_batch_size: 4
    save_steps: 1
    logging_steps: 1
    keep_adapters: true
    require: {eval/kto/margin: {min: -100}}
"""
SHARED = ("base", "sft", "reward")
STEPS = {"ppo": 3 * 2 * 2, "grpo": 3 * 2 * 2, "rloo": 3 * 2 * 2, "kto": 4}


def written(folder: Path, kind: str) -> Path:
    """The recipe with another kind in one line."""
    text = RECIPE
    if kind == "kto":
        text = re.sub(r"  policy:\n.*?(?=  next:)", MARKED, text, flags=re.DOTALL)
    path = folder / "recipe.yaml"
    path.write_text(text.replace("kind: ppo", f"kind: {kind}"))
    return path


def manifest(out: Path, stage: str) -> manifests.Manifest:
    directory = folder(out, stage)
    assert directory is not None
    return manifests.verify(directory, full=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> dict[str, Path]:
    """The run folder after each kind, in which the stages before it are made once."""
    base = tmp_path_factory.mktemp("runs")
    found = {}
    for kind in STEPS:
        done = warm.run(["run", str(written(base, kind)), "--out", str(base / "out")])
        assert done.returncode == 0, done.stdout + done.stderr
        found[kind] = base / "out" / "stages" / "policy" / (base / "out/stages/policy/current").read_text().strip()
    return {**found, "out": base / "out", "recipe": base / "recipe.yaml"}


@pytest.mark.parametrize("kind", STEPS)
def test_every_kind_leaves_the_same(runs: dict[str, Path], kind: str) -> None:
    found = manifests.verify(runs[kind], full=True)
    assert found.kind == kind and found.inputs.keys() == manifests.verify(runs["grpo"], full=True).inputs.keys() - (
        {"reward"} if kind == "kto" else set()
    )
    paths = {output.path.split("/")[0] for output in found.outputs}
    assert {"adapter", "adapters", "tokenizer"} <= paths
    assert ("samples.jsonl" in paths) == (kind != "kto") and ("value" in paths) == (kind == "ppo")
    config, usual = (json.loads((runs[name] / "adapter" / "adapter_config.json").read_text()) for name in (kind, "ppo"))
    assert config == usual
    kept = sorted(int(path.name.split("-")[1]) for path in (runs[kind] / "adapters").iterdir())
    assert kept[-1] == STEPS[kind] and len(kept) >= 3
    assert found.cost["tokens"] > 0 and found.cost["flops"] > 0
    assert all(describe(name).meaning for name in found.metrics)


def test_online_kinds_write_the_same_samples_first(runs: dict[str, Path]) -> None:
    """The first rollout is that of the reference, and the same for all of them: raw rewards as well."""
    first = {}
    for kind in ("ppo", "grpo", "rloo"):
        rows = [json.loads(line) for line in (runs[kind] / "metrics.jsonl").read_text().splitlines()]
        first[kind] = next(row[f"{kind}/score"] for row in rows if f"{kind}/score" in row)
        keys = {"policy", "prompt", "completion", "finished", "tokens", "reward", "kl"}
        samples = [json.loads(line) for line in (runs[kind] / "samples.jsonl").read_text().splitlines()]
        assert len(samples) == 8 and all(row.keys() == keys for row in samples)
    assert first["grpo"] == pytest.approx(first["ppo"], abs=1e-5) == pytest.approx(first["rloo"], abs=1e-5)


def test_the_stages_before_are_made_once_and_those_after_again(runs: dict[str, Path]) -> None:
    stages = runs["out"] / "stages"
    made = {stage.name: len([path for path in stage.iterdir() if path.is_dir()]) for stage in stages.iterdir()}
    assert {made[stage] for stage in SHARED} == {1}
    assert made["policy"] == made["next"] == made["eval"] == len(STEPS)
    assert {"policy:gold", "policy:kl", "next:win_rate"} <= {
        name.partition("/mean")[0] for name in manifest(runs["out"], "eval").metrics
    }


def test_the_report_shows_what_was_learned(runs: dict[str, Path], warm: Warm, tmp_path: Path) -> None:
    done = warm.run(["run", str(written(tmp_path, "rloo")), "--out", str(runs["out"])])
    assert done.returncode == 0 and "rloo" in done.stdout
    page = (runs["out"] / "report" / "index.html").read_text()
    assert "Distance from the reference" in page and "Reward of the rollouts" in page and "rloo/tie_rate" in page


def test_a_gate_is_a_gate(runs: dict[str, Path], warm: Warm, tmp_path: Path) -> None:
    gate = "stages.policy.require={grpo/episodes: {min: 25}}"
    done = warm.run(["run", str(written(tmp_path, "grpo")), "--out", str(runs["out"]), "--set", gate])
    assert done.returncode == 6 and "grpo/episodes" in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["grpo", "rloo", "kto"])
def test_a_killed_stage_goes_on_and_ends_with_the_same_bits(
    runs: dict[str, Path], warm: Warm, tmp_path: Path, kind: str
) -> None:
    recipe, out = written(tmp_path, kind), tmp_path / "out"
    line = ["run", str(recipe), "--out", str(out)]
    before = warm.run([*line, "--only", "base", "--only", "sft", "--only", "reward"])
    assert before.returncode == 0, before.stderr
    warm.start([*line, "--only", "policy"])

    def saved() -> bool:
        started = folder(out, "policy")
        return started is not None and any(started.glob("checkpoints/checkpoint-*"))

    assert wait_until(saved, warm.has_ended)
    pid = worker_pid(out, "policy")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert warm.result().returncode != 0
    again = warm.run([*line, "--only", "policy"])
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in (out / "logs" / "policy.log").read_text()
    assert manifest(out, "policy").sha256 == manifests.verify(runs[kind], full=True).sha256


def test_one_line_is_all_that_differs(tmp_path: Path) -> None:
    texts = {kind: written(tmp_path, kind).read_text().splitlines() for kind in ("ppo", "grpo", "rloo")}
    for kind in ("grpo", "rloo"):
        different = [line for line, usual in zip(texts[kind], texts["ppo"], strict=True) if line != usual]
        assert [line.strip() for line in different] == [f"kind: {kind}"]
        (warning,) = load(written(tmp_path, kind)).warnings
        assert f"the gate on 'ppo/episodes' is read as one on '{kind}/episodes'" in warning


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_quickstart_runs_with_another_kind_in_one_line(
    quickstart_before_ppo: Path, warm: Warm, tmp_path: Path, kind: str
) -> None:
    recipe, out = tmp_path / "quickstart.yaml", tmp_path / "out"
    text = QUICKSTART.read_text()
    assert text.count("kind: ppo") == 1
    recipe.write_text(text.replace("kind: ppo", f"kind: {kind}"))
    shutil.copytree(quickstart_before_ppo, out)
    done = warm.run(words(out, "--only", "ppo", "--only", "eval", recipe=recipe))
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    assert f"stages.ppo.kind: '{kind}' does not use 'value', so it is set aside" in said
    assert "'num_ppo_epochs' is read as 'num_iterations'" in said
    found = manifest(out, "ppo")
    assert found.kind == kind and f"{kind}/score" in found.metrics
    assert "ppo:win_rate/mean" in manifest(out, "eval").metrics  # of the stage, whose name stays


@pytest.fixture(scope="module")
def quickstart_before_ppo(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """The small quickstart, without ppo and what comes after it."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    stages = [word for stage in STAGES if stage not in ("ppo", "eval") for word in ("--only", stage)]
    done = warm.run(words(out, *stages))
    assert done.returncode == 0, done.stderr
    return out
