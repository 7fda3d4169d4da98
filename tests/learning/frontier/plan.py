"""What is trained for the frontier: methods, budgets, settings and seeds, and the processes of each run.

Every method has as many settings, is tried with all of them on the first seed, and reported on other seeds with those
that were best there, for each KL on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.learning.frontier import world

HERE = "tests.learning.frontier"
RECIPE = Path(__file__).with_name("frontier.yaml")
BUDGETS = (3_200, 16_000)
"""Completions that a method may sample."""
CHOSEN_ON, REPORTED = 0, (1, 2, 3, 4, 5)
KEEP = 10
"""Policies of a run that are measured, evenly spaced over its training."""
ROUNDS = 4
"""Of iterative DPO."""
_BATCH, _DPO_BATCH = 64, 32

Words = Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: A key of `METHODS`.
        budget: Completions that it samples.
        setting: Name of one of the method's settings.
        seed: Of everything random.
    """

    method: str
    budget: int
    setting: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of results, and of its folder."""
        return f"{self.method}/{self.budget}/{self.setting}/{self.seed}"


@dataclass(frozen=True)
class Process:
    """A process of a run: words after `python`, and what it finds in its environment."""

    words: Sequence[str]
    environment: Words = field(default_factory=dict)


def _grid(betas: Sequence[str], rates: Sequence[str], rate: str) -> dict[str, Words]:
    return {f"beta {beta}, lr {value}": {"beta": beta, rate: value} for beta in betas for value in rates}


# What the KL costs is chosen so that runs end a little beyond the KLs of `score.KLS`: PPO's by its controller.
_PPO: Mapping[str, Words] = {
    f"KL {target}, lr {rate}": {
        "kl.coefficient": start, "kl.adaptive_target": target, "kl.horizon": "1000", "learning_rate": rate
    }
    for target, start in (("2.3", "0.55"), ("5.6", "0.28"))
    for rate in ("5e-4", "1e-3", "2e-3")
}  # fmt: skip
_TRL_RLOO = _grid(("1.5", "1.2", "1.0"), ("5e-4", "1e-3"), "lr")
_TRL_GRPO = _grid(("0.45", "0.38", "0.32"), ("5e-4", "1e-3"), "lr")
_DPO = _grid(("0.3", "0.1", "0.03"), ("1e-3", "3e-3"), "learning_rate")
VARIANTS: Mapping[str, Words] = {
    "ppo, shared value": {"value": "shared"},
    "ppo, scored at the end": {"score_prefixes": "0"},
}
"""PPO with something else, and what that is: run with the smaller budget alone, to show what the part is good for."""
METHODS: Mapping[str, Mapping[str, Words]] = {
    "ppo": _PPO,
    **dict.fromkeys(VARIANTS, _PPO),
    "rloo": _TRL_RLOO,
    "grpo": _TRL_GRPO,
    "dpo": _DPO,
    "iterative dpo": _DPO,
}
"""Settings of every method by name: keys of the recipe's stage, or words of `trl_side`."""
PROPOSALS = Run("ppo", BUDGETS[0], "KL 5.6, lr 2e-3", CHOSEN_ON)
"""Goes far from the base: its completions cover rewards that the base rarely has."""


def methods(budget: int, wanted: Sequence[str] = tuple(METHODS)) -> list[str]:
    """Those of the wanted ones that are run with a budget."""
    return [name for name in wanted if budget == BUDGETS[0] or name not in VARIANTS]


def processes(run: Run, folder: Path, prompts: Path) -> list[Process]:
    """What trains a run, in order.

    Args:
        run: Which.
        folder: Where it writes.
        prompts: Folder of `world.write_prompts`.
    """
    setting = METHODS[run.method][run.setting]
    if run.method in ("rloo", "grpo"):
        options = {**setting, "steps": str(run.budget // _BATCH), "batch": str(_BATCH), "seed": str(run.seed)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [Process(["-m", f"{HERE}.trl_side", run.method, str(prompts), str(folder), *words])]
    environment = {
        "FRONTIER_MODEL": str(world.peer().MODEL),
        "FRONTIER_PROMPTS": str(prompts),
        "FRONTIER_LEXICON": str(world.lexicon()),
    }
    stages, values = _stages(run, setting)
    words = ["-m", "prefopt", "run", str(RECIPE), "--out", str(folder)]
    for name, value in {"seed": str(run.seed), **values}.items():
        words += ["--set", f"{name}={value}"]
    return [Process([*words, "--only", stage], environment) for stage in stages]


def _stages(run: Run, setting: Words) -> tuple[list[str], dict[str, str]]:
    if run.method.startswith("ppo"):
        steps = run.budget // _BATCH
        values = {"total_episodes": str(run.budget), "save_steps": str(steps // KEEP), **setting}
        values |= VARIANTS.get(run.method, {})
        return ["ppo"], {f"stages.ppo.{name}": value for name, value in values.items()}
    rounds = ROUNDS if run.method == "iterative dpo" else 1
    # Two samples make a pair: as few samples of a prompt as there are prompts for.
    each = 2 * math.ceil(run.budget / rounds / world.TRAINING / 2)
    prompts = run.budget // rounds // each
    steps = prompts * (each // 2) // _DPO_BATCH
    values, names = {}, []
    for number in range(1, rounds + 1):
        offset = (number - 1) * prompts % world.TRAINING
        sampled = {
            "samples_per_prompt": each,
            "pairs_per_prompt": each // 2,
            "max_prompts": prompts,
            "prompt_offset": offset,
        }
        trained = {**setting, "save_steps": str(max(1, steps * rounds // KEEP))}
        values |= {f"stages.pairs{number}.{name}": str(value) for name, value in sampled.items()}
        values |= {f"stages.dpo{number}.{name}": value for name, value in trained.items()}
        names += [f"pairs{number}", f"dpo{number}"]
    return names, values


def adapters(run: Run, folder: Path) -> list[Path]:
    """The policies that a run kept, in the order of training."""
    if run.method in ("rloo", "grpo"):
        found = folder.glob("step-*")
        return sorted(found, key=_step)
    stages = ["ppo"] if run.method.startswith("ppo") else [f"dpo{n}" for n in range(1, ROUNDS + 1)]
    kept = []
    for stage in stages:
        kept += sorted(folder.glob(f"stages/{stage}/*/adapters/step-*"), key=_step)
    return kept


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
