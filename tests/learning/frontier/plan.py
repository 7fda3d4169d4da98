"""What is trained for the frontier: methods, budgets, settings and seeds, and the processes of each run.

Every method has as many settings, is tried with all of them on the first seed, and reported on other seeds with those
that were best there, for each KL on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from prefopt.store.files import sha256_json
from tests.learning.frontier import measure, world

HERE = "tests.learning.frontier"
RECIPE = Path(__file__).with_name("frontier.yaml")
BUDGETS = (3_200, 16_000)
"""Completions that a method may sample."""
CHOSEN_ON, REPORTED = 0, (1, 2, 3, 4, 5)
KEEP = 10
"""Policies of a run that are measured, evenly spaced over its training."""
ROUNDS = 4
"""Of iterative DPO."""
REFERENCE = 256
"""Completions of the base by which PPO scales its rewards: they are part of its budget."""
_BATCH, _DPO_BATCH = 64, 32

Words = Mapping[str, str]
Settings = Mapping[str, Words]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: A key of `METHODS`.
        budget: Completions that it samples at most.
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

    @classmethod
    def of(cls, key: str) -> Run:
        """The run of a key."""
        method, budget, setting, seed = key.split("/")
        return cls(method, int(budget), setting, int(seed))

    @property
    def digest(self) -> str | None:
        """Of all that is written down of a training but the code: rows with another are of another training.

        None for a setting that is not tried any more.
        """
        setting = settings(self.method, self.budget).get(self.setting)
        if setting is None:
            return None
        written = _of_trl() if self.method in PEERS else _of_recipe("ppo" if self.method in PPOS else "dpo")
        task = [world.TRAINING, world.HELD_OUT, world.NEW_TOKENS, measure.EACH, measure.SEED, KEEP]
        task += [ROUNDS, REFERENCE, _BATCH, _DPO_BATCH]
        said = [written, dict(setting), dict(VARIANTS.get(self.method, {})), task]
        return sha256_json(said)[:16]


@dataclass(frozen=True)
class Process:
    """A process of a run: words after `python`, and what it finds in its environment."""

    words: Sequence[str]
    environment: Words = field(default_factory=dict)


def _betas(*chosen: tuple[str, str], rate: str = "lr") -> Settings:
    """Betas, each with a learning rate."""
    return {f"beta {beta}, lr {value}": {"beta": beta, rate: value} for beta, value in chosen}


_of_stage = partial(_betas, rate="learning_rate")


def _ppo(starts: Words, rates: Sequence[str], **more: str) -> Settings:
    """Target of the KL, and the coefficient that its controller starts from, with each learning rate."""
    return {
        f"KL {target}, lr {rate}": {
            "kl.coefficient": start, "kl.adaptive_target": target, "kl.horizon": "1000", "learning_rate": rate, **more
        }
        for target, start in starts.items()
        for rate in rates
    }  # fmt: skip


# What the KL costs is chosen so that runs come a little beyond the KLs of `score.KLS`: PPO's by its controller.
_RATES = ("5e-4", "1e-3", "2e-3")
# A value that learns faster than the policy foresees most of what comes after 600 episodes, and next to nothing at the
# policy's rate: only then does a small budget gain by using every episode more than once, and by a shorter λ.
_REUSED = {"num_ppo_epochs": "4", "value_learning_rate": "2e-3", "lam": "0.9"}
_PPO = {
    **_ppo({"2.2": "0.5"}, ("2.5e-4", "3.2e-4"), **_REUSED),
    **_ppo({"2.15": "0.5"}, ("4e-4",), **_REUSED),
    **_ppo({"5.5": "0.28"}, ("2.5e-4", "4e-4", "6e-4"), **_REUSED),
}
_PPO_ONCE = _ppo({"2.3": "0.55", "5.6": "0.28"}, _RATES)
# With a score at the end the first tokens hear of it by what the value foresees later, if λ is below 1.
_PPO_AT_END = {
    f"{name}, lam {lam}": setting
    for lam, rates in {"0.95": ("2.5e-4", "4e-4"), "0.9": ("4e-4",)}.items()
    for name, setting in _ppo({"2.3": "0.5", "5.5": "0.28"}, rates, **{**_REUSED, "lam": lam}).items()
}
# With a score at the end and the default λ of 0.95 the first tokens hear next to nothing of it (0.95^48 is 0.09): runs
# stopped short of the KLs or had 60 % of the limit's gain. With λ = 1 they hear all of it.
_PPO_ONCE_AT_END = _ppo({"2.3": "0.55", "5.6": "0.35"}, _RATES)
# Rates above 3e-4 are behind wherever a lower one goes as far, so that others are lower.
_DPO = _of_stage(*product(("1.0", "0.5", "0.25"), ("1e-3",)), ("0.25", "3e-4"), ("0.1", "3e-4"), ("0.1", "1.5e-4"))
# Every round is paid for the distance from the one before, so that the price must be higher.
_ITERATIVE_DPO = _of_stage(
    ("2.0", "1e-3"), *product(("2.0", "1.0", "0.5"), ("3e-4",)), ("1.2", "1.5e-4"), ("0.3", "1.5e-4")
)
# With five times as many steps rates are lower: with the smaller budget the lowest was best nearly always.
# Four settings, as a run takes five minutes. The controller of PPO has time to come nearer to its target.
_LOW = ("1.5e-4", "3e-4")
# TRL's trainers lost with rates as high as PPO's, and get lower ones; which go less far, and so cost less.
METHODS: Mapping[str, Mapping[int, Settings]] = {
    "ppo": {3_200: _PPO, 16_000: _ppo({"2.1": "0.55", "5.2": "0.28"}, _LOW)},
    "ppo, scored at the end": {3_200: _PPO_AT_END},
    "ppo, one epoch": {3_200: _PPO_ONCE},
    "ppo, one epoch, shared value": {3_200: _PPO_ONCE},
    "ppo, one epoch, scored at the end": {3_200: _PPO_ONCE_AT_END},
    "rloo": {
        3_200: _betas(*product(("1.3", "0.9"), _RATES[:2]), ("1.0", "2.5e-4"), ("0.6", "2.5e-4")),
        16_000: _betas(("1.3", "1.5e-4"), ("1.2", "7.5e-5"), ("0.9", "1.5e-4"), ("0.8", "7.5e-5")),
    },
    "grpo": {
        3_200: _betas(*product(("0.33", "0.2"), _RATES[:2]), ("0.22", "2.5e-4"), ("0.15", "2.5e-4")),
        16_000: _betas(("0.31", "1.5e-4"), ("0.28", "7.5e-5"), ("0.2", "1.5e-4"), ("0.17", "7.5e-5")),
    },
    "dpo": {
        3_200: _DPO,
        16_000: _of_stage(("0.5", "1.5e-4"), ("0.3", "7.5e-5"), ("0.22", "1.5e-4"), ("0.25", "3e-4")),
    },
    "iterative dpo": {
        3_200: _ITERATIVE_DPO,
        16_000: _of_stage(("3.2", "1.5e-4"), ("1.8", "7.5e-5"), *product(("1.5",), _LOW)),
    },
}
"""Settings of every method with each budget, by name: keys of the recipe's stage, or words of `trl_side`."""
VARIANTS: Mapping[str, Words] = {
    "ppo, scored at the end": {"score_prefixes": "0"},
    "ppo, one epoch": {},
    "ppo, one epoch, shared value": {"value": "shared"},
    "ppo, one epoch, scored at the end": {"score_prefixes": "0", "lam": "1.0"},
}
"""PPO in other ways, and what those are beside their settings: with the smaller budget alone. The first hears no more
than other methods do. The second uses every episode once, with one rate for policy and value and the default λ; the
last two are the second with a change each.
"""
COMPARED: Mapping[str, Sequence[str]] = {
    "ppo, scored at the end": ("ppo, one epoch, scored at the end", "rloo", "grpo", "dpo", "iterative dpo"),
    "ppo, one epoch": ("ppo, one epoch, shared value", "ppo, one epoch, scored at the end"),
}
"""What variants are compared with, beside PPO: the first with all that hear as much, the second with its changes."""
PEERS, PPOS = ("rloo", "grpo"), ("ppo", *VARIANTS)
"""What TRL trains, and what the recipe's ppo stage does; its dpo stages do the rest."""
TRL: Mapping[str, Any] = {"lr_scheduler_type": "linear", "temperature": 1.0, "bf16": False}
TRL_LORA: Mapping[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
"""What TRL's trainers and their adapters are told beside a setting."""
PROPOSALS = Run("ppo, one epoch", BUDGETS[0], "KL 5.6, lr 2e-3", CHOSEN_ON)
"""Goes far from the base: its completions cover rewards that the base rarely has."""


def settings(method: str, budget: int) -> Settings:
    """Of a method with a budget, by name; none where it is not run with it."""
    return METHODS.get(method, {}).get(budget, {})


def methods(budget: int, wanted: Sequence[str] = tuple(METHODS)) -> list[str]:
    """Those of the wanted ones that are run with a budget."""
    return [name for name in wanted if budget in METHODS[name]]


def _of_trl() -> Any:
    return [dict(TRL), dict(TRL_LORA)]


def _of_recipe(kind: str) -> Any:
    """What the recipe says of a method, without comments, and without the stages of other methods."""
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    mine = {name: stage for name, stage in recipe["stages"].items() if (stage["kind"] == "ppo") == (kind == "ppo")}
    return {**recipe, "stages": mine}


def processes(run: Run, folder: Path, prompts: Path) -> list[Process]:
    """What trains a run, in order.

    Args:
        run: Which.
        folder: Where it writes.
        prompts: Folder of `world.write_prompts`.
    """
    setting = METHODS[run.method][run.budget][run.setting]
    if run.method in PEERS:
        options = {**setting, "steps": str(run.budget // _BATCH), "batch": str(_BATCH), "seed": str(run.seed)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [Process(["-m", f"{HERE}.trl_side", run.method, str(prompts), str(folder), *words])]
    environment = {
        "FRONTIER_MODEL": str(world.peer().MODEL),
        "FRONTIER_PROMPTS": str(prompts),
        "FRONTIER_LEXICON": str(world.lexicon()),
    }
    stages, values = _of_ppo(run, setting) if run.method in PPOS else _of_dpo(run, setting, prompts)
    words = ["-m", "prefopt", "run", str(RECIPE), "--out", str(folder)]
    for name, value in {"seed": str(run.seed), **values}.items():
        words += ["--set", f"{name}={value}"]
    return [Process([*words, "--only", stage], environment) for stage in stages]


def _of_ppo(run: Run, setting: Words) -> tuple[list[str], dict[str, str]]:
    rollouts = (run.budget - REFERENCE) // _BATCH
    of_each = int(setting.get("num_ppo_epochs", "1"))
    values = {
        "reward.reference_samples": str(REFERENCE),
        "total_episodes": str(rollouts * _BATCH),
        "save_steps": str(of_each * int(_every(rollouts))),
        **setting,
        **VARIANTS.get(run.method, {}),
    }
    return ["ppo"], {f"stages.ppo.{name}": value for name, value in values.items()}


def _of_dpo(run: Run, setting: Words, folder: Path) -> tuple[list[str], dict[str, str]]:
    rounds = ROUNDS if run.method == "iterative dpo" else 1
    each, prompts = sampled(run.budget // rounds, len(world.training_prompts(folder)))
    steps = math.ceil(prompts * (each // 2) / _DPO_BATCH)
    values: dict[str, str] = {}
    names: list[str] = []
    for number in range(1, rounds + 1):
        of_pairs = {
            "samples_per_prompt": each,
            "pairs_per_prompt": each // 2,
            "max_prompts": prompts,
            # Each round goes on where the one before ended, and begins anew after the last: all have their turn.
            "prompt_offset": (number - 1) * prompts,
        }
        trained = {**setting, "save_steps": _every(steps * rounds)}
        values |= {f"stages.pairs{number}.{name}": str(value) for name, value in of_pairs.items()}
        values |= {f"stages.dpo{number}.{name}": value for name, value in trained.items()}
        names += [f"pairs{number}", f"dpo{number}"]
    return names, values


def _every(steps: int) -> str:
    """Steps between policies that are kept; a stage's last is kept as well."""
    return str(max(1, round(steps / KEEP)))


def sampled(budget: int, distinct: int) -> tuple[int, int]:
    """Completions of a prompt, an even number, since two make a pair, and prompts: as many as the budget allows.

    Args:
        budget: Completions at most.
        distinct: Prompts that there are: no more than these are answered, however often they are listed.
    """
    each = 2 * math.ceil(budget / distinct / 2)
    return each, budget // each


def adapters(run: Run, folder: Path) -> dict[Path, float]:
    """The policies that a run kept, in the order of training, with the share of it that each of them had."""
    if run.method in PEERS:
        return _of_stages([sorted(folder.glob("step-*"), key=_step)])
    stages = ["ppo"] if run.method in PPOS else [f"dpo{number}" for number in range(1, ROUNDS + 1)]
    kept = [sorted(folder.glob(f"stages/{stage}/*/adapters/step-*"), key=_step) for stage in stages]
    return _of_stages([each for each in kept if each])


def _of_stages(kept: Sequence[Sequence[Path]]) -> dict[Path, float]:
    """Stages count alike; the last policy of each is its end."""
    return {
        path: (number + _step(path) / _step(paths[-1])) / len(kept)
        for number, paths in enumerate(kept)
        for path in paths
    }


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
