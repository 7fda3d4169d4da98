"""A method has the same stem everywhere: who knows one of its files finds the others."""

from __future__ import annotations

import pytest

from prefopt.pipeline.revisions import REVISIONS
from prefopt.recipe.bundled import bundled_recipes
from prefopt.recipe.layout import stage_specs
from prefopt.recipe.schema import KINDS, LATER_KINDS
from prefopt.recipe.yaml import parse
from tests.end_to_end.small import ROOT

# The loss and the trainer are TRL's, behind one door.
TRLS = ("kto", "grpo", "rloo")
# TRL trains these, or nothing is trained.
WITHOUT_TRAINER = (*TRLS, "sft", "collect", "evaluate")
# The loss is the library's cross-entropy, or nothing is trained.
WITHOUT_LOSS = (*TRLS, "pretrain", "sft", "collect", "evaluate")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_its_files(kind: str) -> None:
    wanted = [f"prefopt/pipeline/stages/{kind}.py", f"docs/algorithms/{kind}.md"]
    if kind not in WITHOUT_TRAINER:
        wanted.append(f"prefopt/trainers/{kind}.py")
    if kind not in WITHOUT_LOSS:
        wanted += [f"prefopt/losses/{kind}.py", f"tests/unit/losses/test_{kind}.py"]
    if "loss_type" in stage_specs()[kind].model_fields:
        wanted.append(f"prefopt/recipe/options/{kind}.py")
    assert [path for path in wanted if not (ROOT / path).is_file()] == []


def test_nothing_has_a_stem_that_is_no_kind() -> None:
    stages = {path.stem for path in (ROOT / "prefopt/pipeline/stages").glob("*.py")} - {"__init__"}
    assert stages == set(KINDS) == set(REVISIONS)
    assert not set(KINDS) & set(LATER_KINDS)
    pages = {path.stem for path in (ROOT / "docs/algorithms").glob("*.md")}
    assert pages <= {*KINDS, "README", "penalties"}  # these are of no kind: rewards of several are shaped by them


def test_every_kind_is_in_a_bundled_recipe() -> None:
    used = set()
    for recipe in bundled_recipes():
        stages = parse(recipe.path.read_text(), str(recipe.path)).tree["stages"]
        used |= {stage["kind"] for stage in stages.values()}
    assert set(KINDS) - set(TRLS) <= used <= set(KINDS)
