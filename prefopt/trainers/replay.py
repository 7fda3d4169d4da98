"""Rollouts that PPO goes over again, long after the policies that sampled them (Lin 1992).

Scores cost more than passes where a large model or a person gives them. A rollout that is gone over many times at once
is learned by heart, its luck as well; the same passes over all rollouts so far learn from each as often, and from the
luck of none as much.

What is remembered is what does not depend on the policy of now: tokens, the log-probabilities they were sampled with,
those of the reference, and scores as they were scaled then. Price of the KL, values, advantages and returns are found
anew whenever a rollout is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefopt.trainers.rollouts import Rollouts

REPLAY_FILE = "replay.safetensors"
_KEPT = ("input_ids", "attention_mask", "mask", "learned", "logps", "reference_logps")
"""Of the episodes; what else is known of them is of another policy and value."""


@dataclass(frozen=True)
class Remembered:
    """A rollout of an earlier policy.

    Attributes:
        episodes: N of them; values, advantages and returns are 0.
        totals: [N], their shaped rewards.
        potentials: [N, L], what was known of these before each token; None where no beginnings were scored.
    """

    episodes: Rollouts
    totals: Tensor
    potentials: Tensor | None

    def to_tensors(self) -> dict[str, Tensor]:
        """What is written."""
        found = {name: getattr(self.episodes, name) for name in _KEPT} | {"totals": self.totals}
        return found if self.potentials is None else {**found, "potentials": self.potentials}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Remembered:
        """What was written."""
        nothing = torch.zeros(tensors["mask"].shape)
        unknown = {each.name: nothing for each in fields(Rollouts) if each.name not in _KEPT}
        episodes = Rollouts(**{name: tensors[name] for name in _KEPT}, **unknown)
        return cls(episodes, tensors["totals"], tensors.get("potentials"))


class Replay:
    """The newest rollouts, from the oldest on.

    Args:
        size: How many are remembered; 0 remembers none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, episodes: Rollouts, totals: Tensor, potentials: Tensor | None) -> None:
        """Remember a rollout, and forget the oldest if there are too many; see `Remembered`."""
        self._kept = [*self._kept, Remembered(episodes, totals, potentials).to_tensors()][-self._size :]
        if not self._size:
            self._kept = []

    def draw(self, seed: int) -> Remembered:
        """One of them, each as likely as the others.

        Args:
            seed: Decides.
        """
        generator = torch.Generator().manual_seed(seed)
        place = int(torch.randint(len(self._kept), (), generator=generator))
        return Remembered.of_tensors(self._kept[place])

    def save(self, directory: Path) -> None:
        """Write them, where there are any."""
        if self._kept:
            named = {f"{place}.{name}": each for place, kept in enumerate(self._kept) for name, each in kept.items()}
            save_file({name: each.contiguous().clone() for name, each in named.items()}, directory / REPLAY_FILE)

    def load(self, directory: Path) -> None:
        """Read them again; none where none were written."""
        self._kept = []
        if not (directory / REPLAY_FILE).exists():
            return
        for name, tensor in sorted(load_file(directory / REPLAY_FILE).items(), key=lambda each: _place(each[0])):
            if _place(name) == len(self._kept):
                self._kept.append({})
            self._kept[-1][name.partition(".")[2]] = tensor


def _place(name: str) -> int:
    return int(name.partition(".")[0])
