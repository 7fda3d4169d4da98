"""Out of memory in a training step: the pass is cut into micro-rows and made again, and the step stays what it was.

A pass is one forward and backward over some rows of an optimiser step. The losses of this package are divided by the
weight of the whole step, so the passes of a step add up, and a pass may be cut anywhere between rows: the gradients of
its parts sum to its own (up to rounding; dropout draws other masks for other parts).

What a failed pass left behind is taken back before its parts are made: gradients that it began to add, random numbers
that it drew, and what it counted. Once a number of rows was too many, later passes have no more than half of it.
`accelerate.utils.find_executable_batch_size` starts the whole training again instead.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Trainer

from prefopt.errors import EnvironmentFault, is_out_of_memory

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)


class MicroRowsTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` whose passes are cut where they do not fit into memory.

    Attributes:
        micro_rows: Most rows of a pass since memory ran out; None as long as it has not.
    """

    micro_rows: int | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One pass over a batch, or several over its parts; the loss is their sum."""
        rows = self.rows_in(inputs)
        whole_step = super().training_step

        def one_pass(start: int, end: int) -> Tensor:
            part = inputs if end - start == rows else without_padding(self.take_rows(inputs, start, end))
            loss: Tensor = whole_step(model, part, num_items_in_batch)
            return loss

        adds_up = self.parts_add_up(num_items_in_batch)
        spans = self.spans(inputs) if adds_up and self.args.world_size == 1 else [(0, rows)]
        losses = []
        for first, last in spans:

            def of_span(start: int, end: int, first: int = first) -> Tensor:
                return one_pass(first + start, first + end)

            losses += self.in_micro_rows(last - first, of_span) if adds_up else [one_pass(first, last)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def parts_add_up(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether the losses of a pass's parts sum to its own.

        Where nothing is known of the whole step, the loss is a mean over the pass, and those of parts do not.
        """
        return num_items_in_batch is not None and self.rows_add_up

    @property
    def rows_add_up(self) -> bool:
        """Whether a pass's loss is a sum over its rows; a loss that compares the rows of a batch is none."""
        return not getattr(self, "aux_loss_enabled", False)

    def spans(self, inputs: dict[str, Any]) -> list[tuple[int, int]]:
        """The passes that a batch is cut into to begin with: the first row of each, and the one after its last."""
        return [(0, self.rows_in(inputs))]

    def rows_in(self, inputs: dict[str, Any]) -> int:
        """Rows of a batch that a loss is computed for."""
        return len(inputs["input_ids"])

    def take_rows(self, inputs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some rows of a batch, from `start` up to but without `end`."""
        return {name: value[start:end] if isinstance(value, Tensor) else value for name, value in inputs.items()}

    def counted(self) -> Any:
        """What a pass counts before it can fail, such as metrics; `recount` puts it back. None when nothing."""
        return None

    def recount(self, counted: Any) -> None:
        """Forget what was counted since `counted`."""

    def in_micro_rows(self, rows: int, one_pass: Callable[[int, int], T]) -> list[T]:
        """Make a pass over rows; when memory runs out, make it in parts.

        Args:
            rows: How many there are.
            one_pass: Takes the first row and the one after the last, and makes a pass over these rows alone. Whatever
                it changes beside gradients, random state and what `counted` gives must be changed at its end.

        Returns:
            What the passes gave, in order.

        Raises:
            EnvironmentFault: When not even one row fits.
        """
        if self.args.world_size > 1:  # the other ranks wait for the gradients of exactly one pass
            return [one_pass(0, rows)]
        found: list[T] = []
        start, too_many = 0, 0
        while start < rows:
            end = min(start + (self.micro_rows or rows), rows)
            try:
                with self._taken_back_on_error():
                    found.append(one_pass(start, end))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if end - start == 1:
                    raise _not_even_one_row(self.state.global_step, error) from error
                too_many = too_many or end - start
                self.micro_rows = (end - start + 1) // 2
            else:
                start = end
                continue
            # Not in the handler: as long as it runs, the traceback holds the tensors of the failed pass.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if too_many:
            _LOGGER.warning(
                "out of memory with %d rows at step %d: passes have at most %d rows from now on. The steps stay what "
                "they were; per_device_train_batch_size %d, with gradient_accumulation_steps raised to match, spares "
                "the failed passes",
                *(too_many, self.state.global_step, self.micro_rows, self.micro_rows),
            )
        return found

    @contextmanager
    def _taken_back_on_error(self) -> Iterator[None]:
        """Within the block gradients are collected apart from those of earlier passes, and added to them at its end."""
        before = {parameter: parameter.grad for parameter in self.model.parameters() if parameter.grad is not None}
        counted = self.counted()
        random = torch.get_rng_state()
        on_device = torch.cuda.get_rng_state(self.args.device) if self.args.device.type == "cuda" else None
        for parameter in before:
            parameter.grad = None
        try:
            yield
        except BaseException:
            for parameter in self.model.parameters():
                parameter.grad = before.get(parameter)
            torch.set_rng_state(random)
            if on_device is not None:
                torch.cuda.set_rng_state(on_device, self.args.device)
            self.recount(counted)
            raise
        for parameter, gradient in before.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def without_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch [B, T] without the positions on the right that are padding in all of its rows."""
    mask = batch.get("attention_mask")
    if mask is None:
        return batch
    width, used = mask.shape[1], int(mask.any(0).nonzero().max()) + 1
    return {
        name: value[:, :used] if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == width else value
        for name, value in batch.items()
    }


def _not_even_one_row(step: int, error: BaseException) -> EnvironmentFault:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return EnvironmentFault(
        f"out of memory at step {step} with a single row: {first}",
        "set activation_checkpointing: true or lower max_length; `prefopt check RECIPE --deep` says what a stage needs",
    )
