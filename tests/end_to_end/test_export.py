"""A chain whose adapter changes shape, exported: PEFT and transformers alone give the logits of what `sample` opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefopt.errors import IntegrityError
from prefopt.models.export import TOLERANCE
from prefopt.models.heads import RewardModel, hang_reward
from prefopt.pipeline.artefact import find_artefact
from prefopt.pipeline.export import export
from prefopt.pipeline.sampling import open_policy
from prefopt.store.files import sha256_file
from tests.end_to_end.small import Finished, Warm, copy_run, folder, snapshot, words

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "what is the price of the red chair?"}]
# dpo goes on from sft with another rank, and once more, in other modules.
RESHAPED = (
    *("--set", "stages.dpo.lora={lora_r: 5, lora_alpha: 10}"),
    *("--set", "stages.dpo.learning_rate=1e-2"),
    *("--set", "stages.again={kind: dpo, init: dpo, data: pairs, max_steps: 7, learning_rate: 1e-2, "
      "per_device_train_batch_size: 4, lora: {lora_r: 3, lora_target_modules: [q_proj, down_proj]}}"),
)  # fmt: skip


@pytest.fixture(scope="session")
def reshaped(quickstart: Finished, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small quickstart, with a dpo stage of another rank and a second one of other modules."""
    out = tmp_path_factory.mktemp("reshaped") / "run"
    copy_run(quickstart.out, out, without=("dpo", "ppo", "eval"))
    done = warm.run(words(out, *RESHAPED, "--only", "dpo", "--only", "again"))
    assert done.returncode == 0, done.stderr
    return out


def exported(warm: Warm, run: Path, stage: str, *more: object) -> dict[str, object]:
    done = warm.run(["export", str(run), "--stage", stage, *map(str, more), "--json"])
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def ids_of(tokenizer_folder: Path) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]


def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids).logits
    return found


def sampled_from(run: Path, stage: str, ids: Tensor) -> Tensor:
    """Of the model that `prefopt sample` opens."""
    policy = open_policy(find_artefact(run, stage), trust_remote_code=False, log=print)
    return logits(policy.bench.model, ids)


@pytest.mark.parametrize("stage", ["dpo", "again"])
def test_a_chain_that_changed_shape_is_one_plain_adapter_or_one_model(
    reshaped: Path, warm: Warm, tmp_path: Path, stage: str
) -> None:
    base = exported(warm, reshaped, "base", "--out", tmp_path / "base")
    adapter = exported(warm, reshaped, stage, "--out", tmp_path / "adapter")
    whole = exported(warm, reshaped, stage, "--merge", "--out", tmp_path / "merged")
    assert (base["merged"], adapter["merged"], whole["merged"]) == (False, False, True)
    assert float(str(adapter["largest_gap"])) == 0 and float(str(whole["largest_gap"])) < 1e-5
    ids = ids_of(tmp_path / "adapter")
    assert torch.equal(ids, ids_of(tmp_path / "merged"))
    expected = sampled_from(reshaped, stage, ids)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    without = logits(plain, ids)
    found = logits(PeftModel.from_pretrained(plain, tmp_path / "adapter"), ids)
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, ids), expected, atol=1e-4, rtol=0)
    assert (expected - without).abs().max() > 0.1
    ranks = {"dpo": {32 + 5}, "again": {32 + 5, 32 + 5 + 3}}[stage]
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert {config.r, *config.rank_pattern.values()} == ranks


def test_each_stage_begins_as_the_one_before_ended(reshaped: Path) -> None:
    directory = folder(reshaped, "dpo")
    assert directory is not None
    ids = ids_of(directory / "tokenizer")
    sft, dpo, again = (sampled_from(reshaped, stage, ids) for stage in ("sft", "dpo", "again"))
    assert (dpo - sft).abs().max() > 1e-3 and (again - dpo).abs().max() > 1e-3
    first = json.loads((directory / "metrics.jsonl").read_text().partition("\n")[0])
    assert first["train/loss"] == pytest.approx(0.6931, abs=0.02), "before the first step the policy is the reference"


def test_a_reward_model_is_exported_with_its_head(quickstart: Finished, warm: Warm, tmp_path: Path) -> None:
    exported(warm, quickstart.out, "base", "--out", tmp_path / "base")
    for name, flags in {"adapter": (), "merged": ("--merge",)}.items():
        done = exported(warm, quickstart.out, "reward", *flags, "--out", tmp_path / name)
        assert done["task"] == "SEQ_CLS" and float(str(done["largest_gap"])) < 1e-5
    directory = folder(quickstart.out, "reward")
    assert directory is not None
    ids = ids_of(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft, head = hang_reward(base, directory / "adapter", "reward")
    with torch.no_grad():
        expected = RewardModel(peft, head).eval()(ids, torch.ones_like(ids))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    scores = logits(PeftModel.from_pretrained(plain, tmp_path / "adapter"), ids)[:, 0]
    merged = logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged"), ids)[:, 0]
    assert torch.allclose(scores, expected, atol=1e-4) and torch.allclose(merged, expected, atol=1e-4)


def test_the_folder_has_a_card_and_nothing_of_this_machine(quickstart: Finished, warm: Warm, out: Path) -> None:
    run = copy_run(quickstart.out, out)
    before = snapshot(run)
    document = exported(warm, run, "ppo")
    out = Path(str(document["folder"]))
    directory = folder(run, "ppo")
    assert directory is not None and out == run / "export" / f"ppo-{directory.name}"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert sha256_file(out / name) == sha256_file(directory / "adapter" / name)
    card = (out / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["prefopt", "ppo", "lora"],
    }
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["key"] in text and all(entry["sha256"] in text for entry in manifest["inputs"].values())
    assert "prefopt export RUN --stage base" in text and "kl:" in text and "| ppo/kl |" in text
    for path in out.iterdir():
        assert str(run).encode() not in path.read_bytes(), path.name
    assert {name: state for name, state in snapshot(run).items() if not name.startswith(str(out))} == before
    assert not list(out.parent.glob(".*.tmp"))


def test_a_folder_with_something_in_it_is_left_alone(quickstart: Finished, warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("keep")
    done = warm.run(["export", str(quickstart.out), "--stage", "sft", "--out", str(tmp_path / "mine")])
    assert done.returncode == 2 and "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note"]
    (tmp_path / "mine" / "note").unlink()
    exported(warm, quickstart.out, "sft", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").is_file()


@pytest.mark.parametrize(
    ("stage", "code", "said"),
    [("eval", 2, "kind evaluate, which has no model"), ("nope", 2, "has no stage 'nope'")],
)
def test_what_has_no_model_is_refused(quickstart: Finished, warm: Warm, stage: str, code: int, said: str) -> None:
    done = warm.run(["export", str(quickstart.out), "--stage", stage])
    assert done.returncode == code and said in done.stderr


def test_an_ensemble_is_no_single_model(quickstart: Finished, warm: Warm, out: Path) -> None:
    copy_run(quickstart.out, out)
    done = warm.run(words(out, "--set", "stages.reward.ensemble=2", "--only", "reward"))
    assert done.returncode == 0, done.stderr
    refused = warm.run(["export", str(out / "stages" / "reward")])
    assert refused.returncode == 2 and "no single reward model" in refused.stderr
    assert not (out / "export").exists()


def test_a_changed_artefact_is_not_exported(quickstart: Finished, warm: Warm, out: Path) -> None:
    copy_run(quickstart.out, out)
    directory = folder(out, "dpo")
    assert directory is not None
    weights = directory / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = warm.run(["export", str(out), "--stage", "dpo", "--merge"])
    assert done.returncode == 5 and "has changed" in done.stderr
    assert not (out / "export").exists()


def test_a_folder_that_cannot_be_written_is_an_environment_fault(
    quickstart: Finished, warm: Warm, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = warm.run(["export", str(quickstart.out), "--stage", "sft", "--out", str(tmp_path / "file" / "x")])
    assert done.returncode == 3 and "is not a directory" in done.stderr


@pytest.mark.parametrize("merge", [False, True])
def test_what_does_not_compute_the_same_is_not_kept(
    quickstart: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    monkeypatch.setitem(TOLERANCE, torch.float32, -1.0)
    artefact = find_artefact(quickstart.out, "dpo")
    with pytest.raises(IntegrityError, match="gives other logits"):
        export(artefact, tmp_path / "out", merge=merge, trust_remote_code=False, log=print)
    assert list(tmp_path.iterdir()) == []
