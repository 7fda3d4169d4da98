"""What a run cost: time, tokens, compute, memory, and money where the recipe has a price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.report.damage import Warn, attempt, is_real, mapping, real
from prefopt.report.format import label, money, quantity

if TYPE_CHECKING:
    from prefopt.report.rundata import RunData, StageData

_SECONDS_PER_HOUR = 3600.0
_NONE = "–"


@dataclass(frozen=True)
class Price:
    """What an hour costs."""

    per_hour: float
    currency: str


@dataclass(frozen=True)
class CostTable:
    """A row of text per finished stage, and the total.

    Attributes:
        columns: Titles, without that of the stage.
        rows: (stage, cells).
        note: How the numbers came about.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    total: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class _Kind:
    name: str
    title: str
    total: Callable[[Sequence[float]], float]


_KINDS = (
    _Kind("wall_seconds", "time", sum),
    _Kind("tokens", "tokens", sum),
    _Kind("flops", label("flops"), sum),
    _Kind("peak_host_bytes", "host memory", max),
    _Kind("peak_device_bytes", "device memory", max),
)


def price_of(recipe: Mapping[str, Any], warn: Warn) -> Price | None:
    """The recipe's `price`; None where there is none or it is damaged."""
    block = recipe.get("price")
    return None if block is None else attempt("price in recipe.yaml", _price, block, warn)


def _price(block: object) -> Price:
    given = mapping(block)
    per_hour = real(given["per_hour"])
    if per_hour < 0:
        raise ValueError("per_hour is below 0")
    return Price(per_hour, str(given.get("currency") or ""))


def costs_of(run: RunData) -> CostTable | None:
    """The table; None where no finished stage says what it cost."""
    spent = {stage.name: cost for stage in run.stages if (cost := _cost(stage))}
    if not spent:
        return None
    kinds = [kind for kind in _KINDS if any(kind.name in cost for cost in spent.values())]
    rows = {stage: [_shown(kind.name, cost.get(kind.name)) for kind in kinds] for stage, cost in spent.items()}
    total = [_shown(kind.name, kind.total([c[kind.name] for c in spent.values() if kind.name in c])) for kind in kinds]
    titles = [kind.title for kind in kinds]
    note = "The total of memory is its largest. "
    note += "Compute is what the arithmetic needs, not what the hardware could have done. " * ("compute" in titles)
    if run.price is not None and "time" in titles:
        titles.append("money")
        _with_money(rows, total, spent, run.price)
        note += f"Money is time at {money(run.price.per_hour, run.price.currency)} an hour. "
    if run.seeds is not None:
        note += "This is the run of the first seed; the others have reports of their own."
    return CostTable(
        tuple(titles), tuple((stage, tuple(cells)) for stage, cells in rows.items()), tuple(total), note.strip()
    )


def _cost(stage: StageData) -> dict[str, float]:
    """What a finished stage says that it cost."""
    if stage.manifest is None:
        return {}
    known = {kind.name for kind in _KINDS}
    return {n: float(v) for n, v in stage.manifest.cost.items() if n in known and is_real(v)}


def _shown(name: str, value: float | None) -> str:
    return _NONE if value is None else quantity(name, value)


def _with_money(
    rows: Mapping[str, list[str]], total: list[str], spent: Mapping[str, Mapping[str, float]], price: Price
) -> None:
    """Adds the amounts to the cells of every row and of the total."""
    amounts = {
        stage: cost["wall_seconds"] / _SECONDS_PER_HOUR * price.per_hour
        for stage, cost in spent.items()
        if "wall_seconds" in cost
    }
    whole = sum(amounts.values())
    # Of a short run a cent hides what its stages cost.
    digits = 2 if whole >= 1 or whole == 0 else 3 if whole >= 0.1 else 4
    for stage, cells in rows.items():
        cells.append(money(amounts[stage], price.currency, digits) if stage in amounts else _NONE)
    total.append(money(whole, price.currency, digits))
