"""Learning rates of parts of a model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer


def set_rate(optimizer: Optimizer, parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Have some parameters learn at a rate of their own; all else of their group stays, and so does a schedule's shape.

    Groups that were there keep their place, so that the rate of the first, which is logged, means what it meant.

    Args:
        optimizer: Before its first step, and before a schedule is made for it.
        parameters: Some of those that it changes; others are passed over.
        rate: What a schedule starts from.
    """
    wanted = set(map(id, parameters))
    for group in list(optimizer.param_groups):
        apart = [parameter for parameter in group["params"] if id(parameter) in wanted]
        if apart:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in wanted]
            optimizer.add_param_group({**group, "params": apart, "lr": rate})
