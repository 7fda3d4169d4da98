"""Training on several processes: the same rows in every step as on one, and the same decisions on every rank.

A rank is one process of those that train one model together; the `forward` of the wrapped module averages their
gradients. Everything here is for one process as well, where it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset, Sampler

T = TypeVar("T")


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def gathered(value: T) -> list[T]:
    """What every rank holds, in the order of ranks; every rank must call it."""
    if ranks() == 1:
        return [value]
    values: list[Any] = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def step_total(accelerator: Accelerator, weights: Sequence[Tensor]) -> Tensor:
    """What the rows of an optimiser step weigh over its passes and all ranks: the divisor that makes 1x8 equal 8x1.

    Args:
        accelerator: Of the trainer.
        weights: Of each pass, of any shape.
    """
    total = torch.stack([each.sum() for each in weights]).sum().to(accelerator.device)
    return cast(Tensor, accelerator.gather(total).sum())


def any_rank(flag: bool) -> bool:
    """Whether the flag is up on any rank: a signal reaches them at different moments, and all must stop together."""
    return any(gathered(flag))


def from_first(make: Callable[[], T]) -> T:
    """What the first rank makes, on every rank; the others wait for it."""
    if ranks() == 1:
        return make()
    values: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(values, src=0)
    made: T = values[0]
    return made


def shared_out(count: int, work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """Results of independent pieces of work, each done by one rank, and all known to every rank.

    Args:
        count: How many pieces there are.
        work: Takes the numbers of some pieces, possibly of none, and gives one result each.
    """
    mine = range(rank(), count, ranks())
    done: list[Any] = [None] * count
    for numbers, results in gathered((mine, list(work(mine)))):
        for number, result in zip(numbers, results, strict=True):
            done[number] = result
    return done


class FilledOrder(Sampler[int]):
    """Row numbers in another sampler's order, and after them numbers of no row until every rank has full batches.

    accelerate would otherwise begin the last step again with the first rows, which would count twice.

    Args:
        order: Of all rows.
        multiple: Rows of one pass over all ranks.
    """

    def __init__(self, order: Sampler[int], multiple: int) -> None:
        self._order = order
        self._multiple = multiple

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0; the dataloader calls it."""
        set_epoch = getattr(self._order, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def __len__(self) -> int:
        return -(-self._rows() // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[int]:
        yield from self._order
        yield from range(self._rows(), len(self))

    def _rows(self) -> int:
        return len(self._order)  # type: ignore[arg-type]


class FilledRows(Dataset[Any]):
    """Rows, and None for every number after the last: nothing, where the last step has too few rows for all ranks.

    Args:
        rows: The data set.
        order: In which they are read.
        total_dataset_length: What accelerate takes for the number of rows: where the last pass is not full it cuts
            what it gathers from all ranks to the rest. That is right for one value per row, and wrong for one per rank.
    """

    def __init__(self, rows: Any, order: FilledOrder, total_dataset_length: int) -> None:
        self.rows = rows
        self.order = order
        self.total_dataset_length = total_dataset_length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the order, which accelerate does not find where a resumed run skips batches."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index] if index < len(self.rows) else None


class FilledCollator:
    """Collates the rows that there are. A batch without any has one that weighs nothing: a rank must not stand idle.

    Args:
        collate: Rows to a batch.
        weightless: Makes a row that weighs nothing from one that does.
        rows: The data set.
    """

    def __init__(
        self, collate: Callable[[list[Any]], Any], weightless: Callable[[Mapping[str, Any]], Any], rows: Any
    ) -> None:
        self._collate = collate
        self._weightless = weightless
        self._rows = rows

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Collate up to B rows."""
        return self._collate([row for row in rows if row is not None] or [self._weightless(self._rows[0])])
