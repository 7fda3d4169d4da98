"""Statistics of made-up pairs, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.pair_statistics import CompletionStatistics, PairStatistics


def side(logratio: Tensor, length: float | Tensor = 4.0, **more: Tensor) -> CompletionStatistics:
    """A completion with a log-ratio; its reference has 3 nats a token."""
    lengths = torch.as_tensor(length, dtype=logratio.dtype).expand_as(logratio)
    reference = -3.0 * lengths
    return CompletionStatistics(reference + logratio, lengths, reference, **more)


def pair(chosen: Tensor, rejected: Tensor, length: float = 4.0) -> PairStatistics:
    return PairStatistics(side(chosen, length), side(rejected, length))


def random_pair(rows: int = 16, seed: int = 3) -> PairStatistics:
    """Pairs with everything that any loss needs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float) -> Tensor:
        return torch.randn(rows, generator=generator, dtype=torch.double) * scale

    sides = []
    for _ in range(2):
        lengths = torch.randint(2, 30, (rows,), generator=generator).double()
        tails = [-draw(1.0).abs() for _ in range(2)]
        sides.append(
            side(
                draw(0.4) * lengths.sqrt(),
                lengths,
                tail_logps=tails[0],
                reference_tail_logps=tails[1],
                sequential_kl=draw(1.0).abs(),
                alignment=draw(1.0).sigmoid(),
            )
        )
    return PairStatistics(sides[0], sides[1], margin=draw(1.0))


def moved(pairs: PairStatistics, chosen: Tensor, rejected: Tensor) -> PairStatistics:
    """The pairs with other log-probabilities under the policy."""
    return pairs._replace(chosen=pairs.chosen._replace(logps=chosen), rejected=pairs.rejected._replace(logps=rejected))
