"""The account of what became of every row, for the manifest and the report page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefopt.data.formats import Reason
from prefopt.errors import DataError

T = TypeVar("T")
IDS_LISTED = 20


@dataclass
class SourceReport:
    """One data set: rows read = kept + dropped.

    Attributes:
        name: Name in the recipe.
        path: Where it comes from.
        format: The format it was read as.
        dropped: Rows left out, by reason.
    """

    name: str
    path: str
    format: str = ""
    rows_read: int = 0
    kept_train: int = 0
    kept_eval: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    _prompts: dict[str, bool] = field(default_factory=dict, repr=False)

    def count(self, rows: Iterable[T]) -> Iterator[T]:
        """Passes rows through and counts them."""
        for row in rows:
            self.rows_read += 1
            yield row

    def drop(self, reason: Reason) -> None:
        """Counts a row that is left out."""
        self.dropped[reason.value] += 1

    def keep(self, prompt_key: str, *, held_out: bool) -> None:
        """Counts a row that is kept."""
        self._prompts[prompt_key] = held_out
        if held_out:
            self.kept_eval += 1
        else:
            self.kept_train += 1

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        held = sum(self._prompts.values())
        return {
            "path": self.path,
            "format": self.format,
            "rows_read": self.rows_read,
            "kept_train": self.kept_train,
            "kept_eval": self.kept_eval,
            "prompts_train": len(self._prompts) - held,
            "prompts_eval": held,
            "dropped": dict(sorted(self.dropped.items())),
        }


@dataclass(frozen=True)
class DataReport:
    """All data sets of one load.

    Attributes:
        sources: One account for each data set.
        contradictions: Ids of pairs of rows that prefer opposite answers of the same two; the rows are kept.
    """

    sources: tuple[SourceReport, ...]
    contradictions: tuple[tuple[str, str], ...] = ()

    @property
    def rows_read(self) -> int:
        """Rows read from all sources."""
        return sum(source.rows_read for source in self.sources)

    @property
    def kept_train(self) -> int:
        """Rows for training."""
        return sum(source.kept_train for source in self.sources)

    @property
    def kept_eval(self) -> int:
        """Rows of held-out prompts."""
        return sum(source.kept_eval for source in self.sources)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return dict(sorted(sum((source.dropped for source in self.sources), Counter[str]()).items()))

    def reasons(self) -> str:
        """One line with the number of rows read and dropped, by reason."""
        dropped = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items())
        return f"{self.rows_read} rows read" + (f"; dropped: {dropped}" if dropped else "")

    def none_usable(self, what: str) -> DataError:
        """The error of a load that has no record left."""
        where = ", ".join(f"'{source.name}' ({source.path})" for source in self.sources)
        return DataError(f"0 usable rows of {what} in {where}: {self.reasons()}", "mend those rows, or name other data")

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest; at most 20 contradictions are listed."""
        return {
            "rows_read": self.rows_read,
            "kept_train": self.kept_train,
            "kept_eval": self.kept_eval,
            "dropped": self.dropped,
            "contradictions": len(self.contradictions),
            "contradictory_ids": [list(ids) for ids in self.contradictions[:IDS_LISTED]],
            "sources": {source.name: source.to_json() for source in self.sources},
        }
