"""How much memory a training stage needs, as a formula of the rows of its batches; imports no torch.

    peak = before + weights + Adam's averages + the largest phase

    phase(rows) = fixed + rows x per row + min(rows x tile per row, whole tile)

with the rows that are computed at once: a batch of pairs is cut into passes of a number of tokens.

`per row` is what one more row of the longest kind takes: its activations, its logits and their gradients. The tile is
a buffer that grows with the rows up to a limit. The forward and backward pass of a step with several passes has the
gradients of the earlier ones beside it. docs/memory.md says how well it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

UPDATE = "update"


@dataclass(frozen=True)
class Phase:
    """A part of training whose peak follows from the rows of its batch.

    Attributes:
        name: `update`: forward and backward; `sampling` of completions; `judging`: what policy, reference and value
            say of them; `evaluation`: a forward pass over held-out rows; `reference`: one over the training rows,
            before the first step.
        rows: Rows of a batch (pairs for dpo and reward, episodes for ppo, grpo and rloo).
        fixed: Bytes whatever the rows, gradients included.
        per_row: Bytes that one more row takes.
        tile_per_row: Bytes of the tile for a row.
        tile: Bytes of the whole tile.
        at_most: Rows that are computed at once, however many the batch has; None for all.
    """

    name: str
    rows: int
    fixed: int
    per_row: int
    tile_per_row: int = 0
    tile: int = 0
    at_most: int | None = None

    @property
    def bytes(self) -> int:
        """At its peak, above what is there all the time."""
        rows = self.rows if self.at_most is None else min(self.rows, self.at_most)
        return self.fixed + rows * self.per_row + min(rows * self.tile_per_row, self.tile)


@dataclass(frozen=True)
class Estimate:
    """What a stage needs, in bytes.

    Attributes:
        before_model: The process with its libraries and rows (on CUDA what is on the device), measured.
        weights: Of the base and of everything that hangs on it.
        trained: Of these the ones that are trained; a step of several passes keeps as many gradients beside those of
            its current pass.
        optimizer: Adam's two averages.
        passes: Of an optimiser step.
        phases: The parts of training; they follow each other, so the largest counts.
    """

    before_model: int
    weights: int
    trained: int
    optimizer: int
    passes: int
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> int:
        """Bytes."""
        kept = self.trained if self.passes > 1 else 0
        largest = max(phase.bytes + kept * (phase.name == UPDATE) for phase in self.phases)
        return self.before_model + self.weights + self.optimizer + largest

    def with_rows(self, rows: int, evaluation: int, passes: int) -> Estimate:
        """The same stage with other batches.

        Args:
            rows: Of a forward and backward pass.
            evaluation: Most rows of any other batch.
            passes: Of an optimiser step.
        """
        phases = (
            replace(phase, rows=rows if phase.name == UPDATE else min(phase.rows, evaluation)) for phase in self.phases
        )
        return replace(self, passes=passes, phases=tuple(phases))

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Estimate:
        """From `to_json`; whatever else is written there is not read."""
        names = ("before_model", "weights", "trained", "optimizer", "passes")
        phases = tuple(Phase(**phase) for phase in written["phases"])
        return cls(**{name: written[name] for name in names}, phases=phases)


def size_text(size: int) -> str:
    """Bytes as people write them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}" if unit == "GiB" else f"{size / factor:.0f} {unit}"
    return f"{size / 1024:.0f} KiB"
