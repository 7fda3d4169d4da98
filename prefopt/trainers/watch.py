"""Looks after a PPO run: shows every rollout to guards and judge, and remembers policies that may be gone back to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from prefopt.errors import DataError, InputError
from prefopt.records import Prompt
from prefopt.trainers import ppo_metrics
from prefopt.trainers.explorer import Explorer
from prefopt.trainers.guards import Guards
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.ppo_metrics import Rollout
from prefopt.trainers.ranks import shared_out
from prefopt.trainers.rollouts import prompt_indices, seed_of

Judge = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Sequence[float]]
"""Takes N prompts, N completions and N others, and gives N probabilities that the first are preferred."""
KEPT_FILE = "kept.safetensors"


class SecondOpinion:
    """Compares the policy with its reference on the same prompts now and then, by somebody who is not trained on.

    Both answer with the same random numbers, so that what the policy did not change makes no difference.

    Args:
        judge: Prefers; None for nobody.
        explorer: Samples.
        rows: The prompts.
        every: Rollouts between two questions.
        seed: Of the random numbers.
    """

    def __init__(
        self, judge: Judge | None, explorer: Explorer, rows: Sequence[Mapping[str, Any]], every: int, seed: int
    ) -> None:
        self._judge = judge
        self._explorer = explorer
        self._rows = rows
        self._every = every
        self._seed = seed
        self._reference: list[str] = []

    def __bool__(self) -> bool:
        """Whether there is somebody."""
        return self._judge is not None

    def of(self, number: int) -> float | None:
        """Win rate of the policy against its reference, in [0, 1]; None where the judge is not asked.

        Args:
            number: Of the rollout that is about to be learned from.
        """
        if self._judge is None or (self._reference and number % self._every):
            return None
        texts = [sample.text for sample in self._explorer.samples(self._rows, self._seed)]
        if not self._reference:  # the policy still equals it
            self._reference = texts
            return 0.5
        said = shared_out(len(texts), lambda indices: self._ask(texts, indices))
        return sum(said) / len(said)

    def _ask(self, texts: Sequence[str], indices: Sequence[int]) -> list[float]:
        assert self._judge is not None
        prompts = [self._rows[index]["prompt"] for index in indices]
        ours, theirs = ([each[index] for index in indices] for each in (texts, self._reference))
        said = [float(value) for value in self._judge(prompts, ours, theirs)] if prompts else []
        if len(said) != len(prompts) or not all(0 <= value <= 1 for value in said):
            raise DataError(f"the judge must give {len(prompts)} probabilities, and gave {said!r:.200}")
        return said

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        return {"reference": self._reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self._reference = list(state["reference"])


class Watch:
    """What is known of the rollouts so far.

    Args:
        args: Options.
        explorer: Samples for the judge.
        judge: Somebody who is not trained on; None for nobody.
        prompts: Of the training.
        tokenizer: Writes tokens as text.

    Attributes:
        guards: Why training should end, and whose policy is kept.
        latest: The samples of the last rollout.
        close_ups: Some of them token by token.
    """

    def __init__(
        self,
        args: PPOConfig,
        explorer: Explorer,
        judge: Judge | None,
        prompts: Sequence[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._args = args
        self._tokenizer = tokenizer
        seed = seed_of(args.seed, "judge")
        rows = [prompts[index] for index in prompt_indices(0, args.judge_prompts, len(prompts), seed)]
        self._judge = SecondOpinion(judge, explorer, rows, args.judge_every, seed)
        self.guards = Guards(replace(args.guards, max_kl=args.kl_stop_above or args.guards.max_kl), args.select)
        self.latest: list[dict[str, Any]] = []
        self.close_ups: list[dict[str, Any]] = []
        self._kept: dict[str, Tensor] = {}

    def see(self, number: int, rollout: Rollout, unit: float, model: nn.Module) -> dict[str, float]:
        """Take in a rollout before anything is learned from it.

        Args:
            number: Of the rollout.
            rollout: Of the policy as it is now.
            unit: Standard deviation of the reference's scores.
            model: What is trained; remembered if it may have to be put back.

        Returns:
            Metrics by name.

        Raises:
            InputError: When something is to be watched that this reward does not have.
        """
        verdict = self._judge.of(number)
        seen = ppo_metrics.health(rollout, unit, self._args.uncertainty_weight, verdict)
        if number == 0 and seen.bound is None and self._needs_ensemble:
            raise InputError(
                "the guards ask for the disagreement of an ensemble, and the reward is none",
                "set `ensemble` in the reward's stage, or give a judge and `keep: judge`",
            )
        if self.guards.see(number, seen):
            self._kept = {name: each.detach().cpu().clone() for name, each in _trained(model).items()}
        self.latest = ppo_metrics.samples_of(rollout.rows, rollout.samples, rollout.shaped, rollout.kl.sum(1))
        self.close_ups = ppo_metrics.close_ups(rollout, self._tokenizer, number)
        return ppo_metrics.averages(rollout, seen)

    @property
    def _needs_ensemble(self) -> bool:
        limits = self._args.guards
        doubts = limits.max_doubt is not None and not self._judge
        return doubts or self._args.select == "bound" or limits.max_disagreement is not None

    @property
    def ends(self) -> bool:
        """Whether training should end."""
        return self.guards.reason is not None and self._args.stop_on_guard

    def put_back(self, model: nn.Module) -> None:
        """Give the model the weights that are to be kept, at the end of training."""
        if self._kept and (self._args.select != "last" or self.ends):
            with torch.no_grad():
                for name, parameter in _trained(model).items():
                    parameter.copy_(self._kept[name])

    def save(self, directory: Path) -> None:
        """Write the remembered weights."""
        if self._kept:
            save_file({name: tensor.contiguous() for name, tensor in self._kept.items()}, directory / KEPT_FILE)

    def load(self, directory: Path) -> None:
        """Read them again."""
        self._kept = load_file(directory / KEPT_FILE) if (directory / KEPT_FILE).exists() else {}

    def state_dict(self) -> dict[str, Any]:
        """What else must be kept to go on."""
        found = {"guards": self.guards.state_dict(), "judge": self._judge.state_dict()}
        return {**found, "latest": self.latest, "close_ups": self.close_ups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self.guards.load_state_dict(state["guards"])
        self._judge.load_state_dict(state["judge"])
        self.latest, self.close_ups = state["latest"], state["close_ups"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
