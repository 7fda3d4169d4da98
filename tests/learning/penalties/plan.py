"""What the experiments on penalties are: recipes, the stages of each part, and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SEEDS = (17, 18, 19)
TARGET, LIMIT = 0.02, 0.03
"""Share of violations that the learned weight aims at, and what the upper end of its interval may be."""
KEPT = 0.95
"""Of the unconstrained gain."""
COMMON_SHARE = 0.95
WORDS = ("loved", "friends", "play", "best", "friend")
"""Those that earned an unconstrained policy most: `python -m tests.learning.penalties.words SAMPLES free`."""


@dataclass(frozen=True)
class Part:
    """One experiment.

    Attributes:
        title: What it asks.
        recipe: File beside this one.
        shared: Stages that are the same for all seeds, and run once.
        stages: Those that are run with each seed.
        settings: Of the recipe, in place of what it says.
    """

    title: str
    recipe: str
    shared: tuple[str, ...]
    stages: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


_WORLD = ("base", "sft")
GRID = {"weight-0.1": 0.1, "weight-0.3": 0.3, "weight-1": 1.0, "weight-3": 3.0}
WORD_GRID = {"weight-0.5": 0.5, "weight-1": 1.0, "weight-2": 2.0, "weight-4": 4.0}
LOSSES = ("plain", "effective", "inverse", "focal")
HACKED = ("hacked", "held")
_TOLD = ("free", "lagrange", "told")
# So far from the base a completion is paid eight deviations and more, which the price has to outbid.
_HIGHER = {"initial_weight": 8, "max_weight": 64, "step_size": 0.15}
_FAR = {
    "stages.free.kl.coefficient": "0.1",
    "stages.lagrange.kl.coefficient": "0.1",
    "stages.lagrange.reward.penalties": json.dumps(
        [{"cost": "banned", "words": WORDS, "target_rate": TARGET, **_HIGHER}]
    ),
}
PARTS: Mapping[str, Part] = {
    "a": Part("polite words and codes in the embedded world", "world.yaml", _WORLD, _TOLD),
    "b": Part("favourite words in stories", "stories.yaml", (), _TOLD),
    "far": Part("favourite words where the KL costs little", "stories.yaml", (), _TOLD, _FAR),
    "c": Part("unlikelihood in sft", "stories.yaml", (), ("imitate", "unlearn")),
    "d": Part(
        "weights of a rare group",
        "world.yaml",
        _WORLD,
        (*LOSSES, *(f"{name}-{group}" for name in LOSSES for group in ("shop", "codes"))),
    ),
    "e": Part("a fooled reward model", "world.yaml", _WORLD, ("labels", "proxy", *HACKED, "fooled")),
    "a-grid": Part("written weights in the embedded world", "world.yaml", _WORLD, (*_TOLD, *GRID, "grid")),
    "b-grid": Part("written weights in stories", "stories.yaml", (), (*_TOLD, *WORD_GRID, "grid")),
}
"""A grid goes on in the run folder of its part, and so takes its policies for granted."""


@dataclass(frozen=True)
class Run:
    """A part with one seed."""

    part: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return f"{self.part}/{self.seed}"

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.part.partition('-')[0]}-{self.seed}"


def words(run: Run, out: Path) -> list[str]:
    """The command of a run, after `python`."""
    part = PARTS[run.part]
    line = ["-m", "prefopt", "run", str(HERE / part.recipe), "--out", str(out)]
    line += [word for name, value in part.settings.items() for word in ("--set", f"{name}={value}")]
    for stage in part.stages:
        line += ["--only", stage, "--set", f"stages.{stage}.seed={run.seed}"]
    return line


def shared_words(recipe: str, stages: tuple[str, ...], out: Path) -> list[str]:
    """The command that makes what all seeds share, after `python`."""
    only = [word for stage in stages for word in ("--only", stage)]
    return ["-m", "prefopt", "run", str(HERE / recipe), "--out", str(out), *only]
