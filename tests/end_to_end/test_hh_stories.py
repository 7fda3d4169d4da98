"""The recipe for real input: human pairs on a real pretrained model, a few steps of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefopt.store import manifest as manifests
from tests.end_to_end.small import ROOT, Warm, folder, prefopt

RECIPES = ROOT / "recipes"
STORIES = RECIPES / "hh_stories.yaml"
ROWS = 80
FEW = (
    f"data.hh.max_samples={ROWS}",
    *(f"stages.{stage}.max_steps=3" for stage in ("sft", "reward", "dpo")),
    *(f"stages.{stage}.per_device_train_batch_size=4" for stage in ("sft", "reward", "dpo", "ppo")),
    *(f"stages.ppo.{key}" for key in ("total_episodes=16", "rollout_batch_size=8", "max_new_tokens=8")),
    *(f"stages.{stage}.require={{}}" for stage in ("sft", "reward", "checks", "eval")),  # a few steps pass no gate
    "stages.eval.max_prompts=4",
    "stages.eval.max_new_tokens=8",
)


@dataclass(frozen=True)
class Stories:
    out: Path
    said: str
    shown: str

    def details(self, stage: str) -> dict[str, dict[str, object]]:
        directory = folder(self.out, stage)
        assert directory is not None
        return manifests.verify(directory, full=True).details


@pytest.fixture(scope="module")
def stories(
    tmp_path_factory: pytest.TempPathFactory, warm: Warm, shared_data: Path, shared_models: Path
) -> Iterator[Stories]:
    out = tmp_path_factory.mktemp("runs") / "stories"
    overrides = [word for setting in FEW for word in ("--set", setting)]
    variables = {"PREFOPT_DATA": str(shared_data), "PREFOPT_MODELS": str(shared_models)}
    done = warm.run(["run", str(STORIES), "--out", str(out), *overrides], **variables)
    assert done.returncode == 0, done.stderr
    yield Stories(out, done.stderr, done.stdout)


@pytest.mark.shared
@pytest.mark.slow
def test_what_was_trimmed_and_dropped_is_counted_in_the_manifest(stories: Stories) -> None:
    for stage in ("sft", "reward", "dpo"):
        details = stories.details(stage)
        data, encoding = details["data"], details["encoding"]
        assert encoding["chat_template"] == "transcript"
        assert encoding["trimmed_prompts"] > 0 and encoding["dropped_too_long"] > 0
        assert data["rows_read"] == ROWS
        dropped = data["dropped"]
        assert isinstance(dropped, dict)
        assert data["kept_train"] + data["kept_eval"] + sum(dropped.values()) == ROWS
    assert stories.details("eval")["encoding"]["chat_template"] == "transcript"


@pytest.mark.shared
@pytest.mark.slow
def test_the_fallback_template_is_named_and_the_counts_are_in_the_report(stories: Stories) -> None:
    assert "chat template 'transcript', 512 positions" in stories.said
    page = (stories.out / "report" / "index.html").read_text()
    shown = re.sub(r"<[^>]*>", " ", page)
    for stage in ("sft", "dpo"):
        encoding = stories.details(stage)["encoding"]
        for name in ("chat_template", "trimmed_prompts", "dropped_too_long"):
            assert re.search(rf"{name.replace('_', ' ')}\s+{encoding[name]}\s", shown), name
    assert "preference accuracy" in stories.shown


@pytest.mark.parametrize(
    ("set_too", "missing"), [({}, ["PREFOPT_DATA", "PREFOPT_MODELS"]), ({"PREFOPT_MODELS": "/"}, ["PREFOPT_DATA"])]
)
def test_an_unset_variable_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_too: dict[str, str], missing: list[str]
) -> None:
    for name in ("PREFOPT_DATA", "PREFOPT_MODELS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_too.items():
        monkeypatch.setenv(name, value)
    done = prefopt("run", STORIES, "--out", tmp_path / "out")
    assert done.returncode == 2
    for name in missing:
        line = next(i for i, text in enumerate(STORIES.read_text().splitlines(), start=1) if f"${{{name}}}" in text)
        assert f"{STORIES}:{line}: " in done.stderr
        assert f"the environment variable {name} is not set — export {name}=…" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_recipe_for_a_gpu_passes_the_check() -> None:
    done = prefopt("check", RECIPES / "hh_rlhf_qwen_lora.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert [stage["kind"] for stage in json.loads(done.stdout)["stages"]] == ["sft", "dpo", "evaluate"]
