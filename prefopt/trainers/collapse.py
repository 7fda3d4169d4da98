"""Guards of training on a model's own answers, which narrow from round to round until one is left (arXiv 2305.17493).

Watched is what such a loop loses first: how undecided the student is along its own answers, and how well it still
foresees real text that it is never trained on. Both are compared with the origin: the teacher and the policy that the
first round started from, however many rounds there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.errors import IntegrityError


@dataclass(frozen=True)
class CollapseLimits:
    """What is still healthy; None does not watch.

    Attributes:
        min_entropy: Share of the origin's entropy.
        max_nll: Times the origin's negative log-likelihood of real text.
        every: Optimiser steps between two looks; training also ends with one.
        prompts: Held-out prompts that the student answers for a look.
        stop: Whether training ends; otherwise it is only said.
    """

    min_entropy: float | None = 0.7
    max_nll: float | None = 1.1
    every: int = 50
    prompts: int = 64
    stop: bool = True


@dataclass(frozen=True)
class Look:
    """How a policy is.

    Attributes:
        entropy: Of the next token along its own answers, nats.
        nll: Negative log-likelihood of a token of held-out real text, nats; None where there is none.
    """

    entropy: float
    nll: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """For the artefact, which the next round reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read it again.

        Raises:
            IntegrityError: When it is something else.
        """
        try:
            nll = value["nll"]
            return cls(float(value["entropy"]), None if nll is None else float(nll))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"no look at a policy: {error!r}") from error


def collapse(origin: Look, now: Look, limits: CollapseLimits) -> str | None:
    """What is wrong with a policy; None while nothing is.

    Args:
        origin: Of the policies that the first round started from.
        now: Of the policy.
        limits: What is healthy.
    """
    if limits.min_entropy is not None and now.entropy < limits.min_entropy * origin.entropy:
        return f"entropy {now.entropy:.3g} is below {limits.min_entropy:g} of {origin.entropy:.3g}"
    if limits.max_nll is not None and origin.nll is not None and now.nll is not None:
        if now.nll > limits.max_nll * origin.nll:
            return f"held-out loss {now.nll:.3g} is above {limits.max_nll:g} of {origin.nll:.3g}"
    return None


class CollapseGuard(TrainerCallback):  # type: ignore[misc]
    """Looks at the student now and then, and ends training that has gone wrong.

    A checkpoint of the step at which it speaks up would be resumed after it: none is written, and a run that is killed
    then comes by the same step again.

    Args:
        look: Looks at the student and logs what it sees.
        origin: What it is compared with.
        limits: What is healthy.

    Attributes:
        reason: What is wrong; None while nothing is.
    """

    def __init__(self, look: Callable[[], Look], origin: Look, limits: CollapseLimits) -> None:
        self._look = look
        self.origin = origin
        self._limits = limits
        self.reason: str | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look where it is time."""
        last = state.global_step >= state.max_steps
        if last or state.global_step % self._limits.every == 0:
            due = control.should_log  # what the look logs would count as the step's own
            found = collapse(self.origin, self._look(), self._limits)
            control.should_log = due
            if found is not None and self.reason is None:
                self.reason = f"{found} at step {state.global_step}"
        if self.reason is not None and self._limits.stop:
            control.should_training_stop = True
            control.should_save = False
