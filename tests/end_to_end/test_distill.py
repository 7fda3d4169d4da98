"""A teacher answers once and for good; students of several kinds learn from it, are killed, and go on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from prefopt.store import manifest as manifests
from prefopt.tracking.metrics import describe
from tests.end_to_end.small import Warm, folder, wait_until, worker_pid

pytestmark = pytest.mark.slow

RECIPE = """\
name: taught
model: {model_name_or_path: base, lora: {lora_r: 4}}
data:
  texts: {path: toy, name: corpus, max_samples: 60}
  demos: {path: toy, name: demonstrations, max_samples: 80, eval_fraction: 0.2}
stages:
  base: {kind: pretrain, data: texts, vocab_size: 320, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1,
    max_steps: 8, max_position_embeddings: 512}
  sft: {kind: sft, data: demos, max_steps: 8}
  student:
    kind: distill
    init: sft
    prompts: demos
    demonstrations: demos
    teacher_context: [{do: prepend, text: always answer in one short sentence}]
    student_context: [{do: drop, role: history}]
    keep: {ended: false}
    top_k: 20
    max_steps: 6
    per_device_train_batch_size: 4
    per_device_eval_batch_size: 4
    max_new_tokens: 8
    save_steps: 1
    logging_steps: 1
    guards: {every: 3, prompts: 4}
    eval_prompts: 8
  best:
    kind: distill
    init: student
    prompts: demos
    demonstrations: demos
    target: sample
    samples_per_prompt: 3
    best_per_prompt: 1
    reward: gold
    keep: {ended: false, costs: [{cost: banned, patterns: [z], name: buzz}, {cost: missing_eos, threshold: 1}]}
    max_steps: 3
    max_new_tokens: 8
    guards: {every: 2, prompts: 4, action: warn}
    require: {distill/kept_reward: {min: -1000}}
  other: {kind: distill, init: sft, teacher: best, prompts: demos, target: on_policy, replay_share: 0, max_steps: 3,
    max_new_tokens: 8, reward: gold}
  vectors: {kind: distill, init: sft, prompts: demos, teacher_context: [{do: prepend, text: be kind}],
    soft_prompt: {num_virtual_tokens: 3, prompt_tuning_init_text: be kind}, keep: {ended: false}, replay_share: 0,
    max_steps: 4, save_steps: 2, max_new_tokens: 8, learning_rate: 0.05}
  search: {kind: distill, init: sft, teacher: base, prompts: demos, target: argmax, num_beams: 2,
    keep: {ended: false}, replay_share: 0, max_steps: 3, max_new_tokens: 8}
  model: {kind: distill, teacher_model_name_or_path: FOLDER, prompts: demos, keep: {ended: false}, replay_share: 0,
    max_steps: 3, max_new_tokens: 8}
  eval: {kind: evaluate, policies: [sft, student, best, other, vectors], prompts: demos, reward: gold, max_prompts: 6,
    max_new_tokens: 8}
"""
STUDENTS = ("student", "best", "other", "search")


def written(into: Path, other: Path | None = None) -> Path:
    path = into / "recipe.yaml"
    before, after = RECIPE.index("  model: {kind"), RECIPE.index("  eval:")
    text = RECIPE.replace("FOLDER", str(other)) if other else RECIPE[:before] + RECIPE[after:]
    path.write_text(text)
    return path


def manifest(out: Path, stage: str) -> manifests.Manifest:
    current = out / "stages" / stage / "current"  # not what was started last, which may be of other options
    return manifests.verify(current.with_name(current.read_text().strip()), full=True)


def sampled(out: Path) -> int:
    """Answers in the ledger, none before it is made."""
    if not (out / "ledger" / "ledger.sqlite3").is_file():
        return 0
    with sqlite3.connect(out / "ledger" / "ledger.sqlite3") as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'samples'").fetchone():
            return 0
        return int(db.execute("SELECT count(*) FROM samples").fetchone()[0])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    base = tmp_path_factory.mktemp("taught")
    done = warm.run(["run", str(written(base)), "--out", str(base / "out")])
    assert done.returncode == 0, done.stdout + done.stderr
    return base / "out"


@pytest.mark.parametrize("stage", STUDENTS)
def test_a_student_is_a_policy_like_any_other(out: Path, stage: str) -> None:
    found = manifest(out, stage)
    assert {"adapter", "tokenizer", "targets.jsonl", "guards.json"} <= {o.path.split("/")[0] for o in found.outputs}
    assert all(describe(name).meaning for name in found.metrics)
    assert {"distill/prompt_ratio", "distill/answer_agreement", "distill/sampling_speedup", "eval/distill/kl",
            "distill/own_entropy", "distill/guard", "distill/distinct"} <= found.metrics.keys()  # fmt: skip
    assert found.cost["tokens"] > 0 and found.cost["flops"] > 0
    assert {"student:gold/mean", "best:gold/mean"} <= manifest(out, "eval").metrics.keys()


def test_what_is_learned_is_written_down_and_learned_again(out: Path) -> None:
    targets = {
        stage: [json.loads(line) for line in ((folder(out, stage) or out) / "targets.jsonl").read_text().splitlines()]
        for stage in STUDENTS
    }
    first = targets["student"]
    assert all("always answer" in row["teacher_prompt"][0]["content"] for row in first)
    assert not any("always answer" in row["prompt"][0]["content"] for row in first)
    assert targets["best"][-len(first) :] == first, "rounds accumulate"
    assert targets["other"] == [], "on policy nothing is collected"
    metrics = manifest(out, "best").metrics
    assert metrics["distill/kept_reward"] > metrics["distill/reward"]
    assert metrics["distill/kept"] <= 1 / 3 and metrics["distill/replay_share"] >= 0.25
    assert manifest(out, "student").metrics["distill/context_tokens"] > 8
    assert -10 <= metrics["distill/own_reward"] <= 10 and "distill/teacher_reward" in metrics
    assert "distill/own_reward" not in manifest(out, "student").metrics


def test_an_answer_that_violates_a_cost_is_not_learned(out: Path) -> None:
    found = manifest(out, "best")
    new = [json.loads(line) for line in ((folder(out, "best") or out) / "targets.jsonl").read_text().splitlines()]
    before = len(((folder(out, "student") or out) / "targets.jsonl").read_text().splitlines())
    assert not any("z" in row["completion"].lower() for row in new[:-before])
    rate = found.metrics["violation_rate/buzz"]
    assert 0 < rate < 1 and found.metrics["violation_rate/missing_eos"] == 0
    assert found.details["left_out"]["violates buzz"] == pytest.approx(rate * 3 * found.metrics["distill/prompts"])


def test_the_origin_of_the_first_round_is_the_origin(out: Path) -> None:
    origins = [json.loads(((folder(out, stage) or out) / "guards.json").read_text()) for stage in ("student", "best")]
    assert origins[0] == origins[1] and origins[0]["nll"] > 0


def test_a_soft_prompt_is_a_policy_beside_the_adapter_that_it_stands_before(out: Path, warm: Warm) -> None:
    found, directory = manifest(out, "vectors"), folder(out, "vectors")
    assert directory is not None and {"soft_prompt", "adapter"} <= {o.path.split("/")[0] for o in found.outputs}
    assert (directory / "adapter" / "adapter_model.safetensors").read_bytes() == (
        (folder(out, "sft") or out) / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert found.cost["tokens"] > 0 and "distill/drift" not in found.metrics
    assert manifest(out, "eval").metrics["vectors:kl/mean"] > 0
    said = warm.run(["sample", str(directory.parent), "--prompt", "which lamp", "--max-new-tokens", "4", "--json"])
    assert said.returncode == 0, said.stderr
    refused = warm.run(["export", str(directory.parent), "--out", str(out / "none")])
    assert refused.returncode == 2 and "is no adapter" in refused.stderr


def test_another_student_of_the_same_answers_samples_nothing(out: Path, warm: Warm) -> None:
    before = sampled(out)
    line = ["run", str(out.parent / "recipe.yaml"), "--out", str(out), "--only", "student"]
    done = warm.run([*line, "--set", "stages.student.learning_rate=1e-3"])
    assert done.returncode == 0 and sampled(out) == before
    assert warm.run(line).returncode == 0


def test_another_model_teaches_where_it_has_the_same_vocabulary(out: Path, warm: Warm, tmp_path: Path) -> None:
    base = folder(out, "base")
    assert base is not None
    recipe = written(tmp_path, base / "model")
    done = warm.run(["run", str(recipe), "--out", str(tmp_path / "out"), "--only", "base", "--only", "model"])
    assert done.returncode == 0, done.stderr
    # The teacher is the base that the student starts from, read from a folder of its own.
    assert manifest(tmp_path / "out", "model").metrics["eval/distill/kl"] < 1e-4


@pytest.mark.parametrize("where", ["sampling", "training"])
def test_a_killed_student_goes_on_and_ends_with_the_same_bits(
    out: Path, warm: Warm, tmp_path: Path, where: str
) -> None:
    line = ["run", str(written(tmp_path)), "--out", str(tmp_path / "out")]
    before = warm.run([*line, "--only", "base", "--only", "sft"])
    assert before.returncode == 0, before.stderr
    warm.start([*line, "--only", "student"])

    def far_enough() -> bool:
        started = folder(tmp_path / "out", "student")
        if where == "training":
            return started is not None and any(started.glob("checkpoints/checkpoint-*"))
        return sampled(tmp_path / "out") > 0

    assert wait_until(far_enough, warm.has_ended)
    pid = worker_pid(tmp_path / "out", "student")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert warm.result().returncode != 0
    again = warm.run([*line, "--only", "student"])
    assert again.returncode == 0, again.stderr
    assert manifest(tmp_path / "out", "student").sha256 == manifest(out, "student").sha256
