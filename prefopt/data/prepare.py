"""Preference pairs from their sources to tokenised rows on disk, in one pass and in memory that texts do not fill.

The same rows, order, counts and errors as `load_pairs` and `Encoder.encode_pair` give, which keep every record. Here a
row is read, tokenised and written; what is kept of it are 56 bytes on disk (`_FIELDS`): digests of its prompt and
content, and what its encoding counted. Which rows are duplicates, which are held out and which contradict each other is
decided from these when all have been read. So a duplicate is tokenised as well, and then belongs to no set.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prefopt.data.digests import Digests, member, repeated, with_both_directions
from prefopt.data.formats import Reason
from prefopt.data.load import PAIRS, held_out_elsewhere, items, new_reports
from prefopt.data.pair_encoder import Encoded, PairEncoder
from prefopt.data.report import IDS_LISTED, DataReport, SourceReport
from prefopt.data.splits import Share, normalise, position, prompt_key
from prefopt.data.token_rows import EVAL, TRAIN, Columns, RowWriter, TokenRows
from prefopt.recipe.schema import DataSpec
from prefopt.records import PreferencePair
from prefopt.store.files import disk_faults, make_folder, remove

PAIR_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_AT_ONCE = 1000
_BLOCK = 1 << 16
_DIGEST_BYTES = 16
_TAIL = struct.Struct("=iHBB")  # after three digests
_FIELDS = np.dtype(
    [(name, f"S{_DIGEST_BYTES}") for name in ("prompt", "answers", "row")]
    + [("neutralised", "i4"), ("source", "u2"), ("flags", "u1"), ("counts", "u1")]
)
_BELOW, _SWAPPED, _TELLS, _STORED = 1, 2, 4, 8  # bits of `flags`
# Bits of `counts`; a pair has two completions, so two boundaries.
_COUNTED = {"trimmed_prompts": (0, 1), "dropped_too_long": (1, 1), "refused_by_template": (2, 1)}
_COUNTED |= {"boundary_mismatch": (3, 3)}
_DUPLICATE, _HELD_ELSEWHERE, _TRAIN, _EVAL = range(4)  # what becomes of a row
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


class Prepared(NamedTuple):
    """The account of a preparation.

    Attributes:
        data: What became of every row, as `DataReport.to_json` has it.
        counts: As `Encoder.counts`.
        refusal: As `Encoder.refusal`.
    """

    data: dict[str, Any]
    counts: dict[str, int]
    refusal: str


def prepare_pairs(
    names: tuple[str, ...],
    data: Mapping[str, DataSpec],
    seed: int,
    encoder: PairEncoder,
    folder: Path,
    columns: Columns,
) -> Prepared:
    """Reads and tokenises preference pairs; writes the sets `train` and `eval` of `TokenRows`.

    Args:
        names: Data sets to load, in this order.
        data: All data sets of the recipe, as `load_pairs`.
        seed: The recipe's seed.
        encoder: New.
        folder: Empty.
        columns: Of the rows, beside `PAIR_IDS`; names of attributes of `PreferencePair`, and texts also of `extra`.

    Raises:
        DataError: If a row is wrong, or no row is usable.
        EnvironmentFault: If the sources cannot be read or the folder not written.
    """
    scratch = folder / "scratch"
    make_folder(scratch)
    reports = new_reports(names, data)
    writers = RowWriter(folder, columns), RowWriter(scratch, Columns((), texts=("id",)))
    reading = _Reading(seed, encoder, columns, *writers)
    try:
        for number, name in enumerate(names):
            reading.source(number, name, data[name], reports[name])
        elsewhere = held_out_elsewhere(names, data, seed, _say_nothing) if reading.rows else frozenset()
        reading.close()
        decisions = _Decisions(scratch, reading, [data[name].eval_fraction for name in names], elsewhere)
        account = decisions.account([*reports.values()])
        for name, state in ((TRAIN, _TRAIN), (EVAL, _EVAL)):
            writers[0].add_set(name, decisions.stored_rows(state))
        writers[0].close()
        counts = decisions.encoder_counts()
    finally:
        for open_files in (reading, *writers):
            open_files.abandon()
    remove(scratch)
    return Prepared(account, counts, encoder.refusal)


class _Reading:
    """The pass over all rows."""

    def __init__(
        self, seed: int, encoder: PairEncoder, columns: Columns, rows: RowWriter, identities: RowWriter
    ) -> None:
        self.rows = 0
        self.shares: list[Share] = []
        self._seed, self._encoder, self._columns, self._writer = seed, encoder, columns, rows
        self._identities = identities
        self._numbers = [attrgetter(name) for name in columns.numbers]
        self.records = identities.folder / "records"
        with disk_faults(self.records):
            self._file = self.records.open("xb")

    def source(self, number: int, name: str, spec: DataSpec, report: SourceReport) -> None:
        """Reads one data set."""
        share = Share(spec.eval_fraction)
        self.shares.append(share)
        waiting: list[tuple[PreferencePair, bytes, int, str]] = []
        for item, identity in items(name, spec, self._seed, _say_nothing, PAIRS, report):
            pair = item if isinstance(item, PreferencePair) else PAIRS.take(item, name, spec)  # which refuses it
            digests, flags = self._digests(pair, share)
            waiting.append((pair, digests, flags, identity))
            if len(waiting) == _AT_ONCE:
                self._write(number, name, spec.weight, waiting)
        self._write(number, name, spec.weight, waiting)

    def abandon(self) -> None:
        """Lets go of the records, whatever is in them."""
        with suppress(OSError):
            self._file.close()

    def close(self) -> None:
        """Writes what is left."""
        with disk_faults(self.records):
            self._file.close()
        self._identities.close()

    def _digests(self, pair: PreferencePair, share: Share) -> tuple[bytes, int]:
        key = prompt_key(pair.prompt)
        chosen, rejected = normalise(pair.chosen), normalise(pair.rejected)
        first, second, swapped = (chosen, rejected, 0) if chosen <= rejected else (rejected, chosen, _SWAPPED)
        # The length says where the first ends.
        answers = sha256(f"{key}{len(first)} {first}{second}".encode())
        row = answers.copy()
        row.update(f" {swapped} {normalise(pair.annotator)}".encode())
        flags = swapped if pair.probability >= 0.5 else swapped ^ _SWAPPED
        flags |= _BELOW * share.add(key, position(key, self._seed))
        flags |= _TELLS * (pair.probability != 0.5 and chosen != rejected)
        packed = bytes.fromhex(key)[:_DIGEST_BYTES] + answers.digest()[:_DIGEST_BYTES] + row.digest()[:_DIGEST_BYTES]
        return packed, flags

    def _write(
        self, number: int, name: str, weight: float, waiting: list[tuple[PreferencePair, bytes, int, str]]
    ) -> None:
        records = []
        encoded = self._encoder.encode_pairs([pair for pair, *_ in waiting])
        for (pair, digests, flags, identity), found in zip(waiting, encoded, strict=True):
            if found.ids is not None:
                self._writer.add(found.ids, *self._further(pair, name, weight))
                flags |= _STORED
            neutralised, counts = _packed(found)
            records.append(digests + _TAIL.pack(neutralised, number, flags, counts))
            self._identities.add((), (), (pair.id or identity,))
        self.rows += len(waiting)
        waiting.clear()
        with disk_faults(self.records):
            self._file.write(b"".join(records))

    def _further(self, pair: PreferencePair, name: str, weight: float) -> tuple[list[float | None], list[str]]:
        columns = self._columns
        if weight != 1.0:
            pair = replace(pair, weight=pair.weight * weight)
        numbers = [number(pair) for number in self._numbers]
        texts = [_text_of(pair, column) or (name if column == "source" else "") for column in columns.texts]
        return numbers, texts + [json.dumps(dict(getattr(pair, column))) for column in columns.documents]


def _text_of(pair: PreferencePair, column: str) -> str:
    """A column that every pair has, or one that its source has besides."""
    value = getattr(pair, column) if column in PreferencePair.__slots__ else pair.extra.get(column, "")
    return str(value)


def _packed(found: Encoded) -> tuple[int, int]:
    """Special tokens taken apart, and the other counts of a pair in one byte."""
    if found.counts is None:
        return 0, 0
    return found.counts.get("neutralised", 0), sum(
        found.counts.get(name, 0) << shift for name, (shift, _) in _COUNTED.items()
    )


class _Decisions:
    """What becomes of every row, from the records of all."""

    def __init__(self, scratch: Path, reading: _Reading, fractions: list[float], elsewhere: frozenset[str]) -> None:
        self._scratch, self._path, self._fractions = scratch, reading.records, np.array(fractions)
        self._rows = reading.rows
        self._held = self._held_out(reading.shares, elsewhere)
        duplicates = repeated(self._column("row"))
        state = [self._states(block, duplicates[start : start + len(block)]) for start, block in self._blocks()]
        self._state: npt.NDArray[np.uint8] = np.concatenate(state or [np.empty(0, np.uint8)])

    def account(self, reports: list[SourceReport]) -> dict[str, Any]:
        """The report of all data sets, as `DataReport.to_json`.

        Raises:
            DataError: If no row is usable.
        """
        sources = self._column("source")
        for number, report in enumerate(reports):
            counts = np.bincount(self._state[sources == number], minlength=4).tolist()
            report.kept_train, report.kept_eval = counts[_TRAIN], counts[_EVAL]
            dropped = {Reason.DUPLICATE: counts[_DUPLICATE], Reason.HELD_OUT: counts[_HELD_ELSEWHERE]}
            report.dropped.update({reason.value: count for reason, count in dropped.items() if count})
        whole = DataReport(tuple(reports))
        if not (whole.kept_train or whole.kept_eval):
            raise whole.none_usable(PAIRS.what)
        found = whole.to_json()
        for number, report in enumerate(reports):
            found["sources"][report.name] |= {
                f"prompts_{name}": self._prompts((sources == number) & (self._state == state))
                for name, state in ((TRAIN, _TRAIN), (EVAL, _EVAL))
            }
        count, listed = self._contradictions()
        return found | {"contradictions": count, "contradictory_ids": listed}

    def encoder_counts(self) -> dict[str, int]:
        """What an encoder would have counted that saw the rows of both sets alone."""
        found: Counter[str] = Counter({"rows": 0, "neutralised": 0})
        for start, block in self._blocks():
            kept = block[self._state[start : start + len(block)] >= _TRAIN]
            found["rows"] += len(kept)
            found["neutralised"] += int(kept["neutralised"].sum())
            for name, (shift, mask) in _COUNTED.items():
                if count := int((kept["counts"] >> shift & mask).sum()):
                    found[name] += count
        return dict(found)

    def stored_rows(self, state: int) -> Iterator[Numbers]:
        """Numbers of the rows of a set among those that were written."""
        written = 0
        for start, block in self._blocks():
            stored = block["flags"] & _STORED > 0
            numbers = written + np.cumsum(stored) - 1
            yield numbers[stored & (self._state[start : start + len(block)] == state)]
            written += int(stored.sum())

    def _blocks(self) -> Iterator[tuple[int, npt.NDArray[np.void]]]:
        start = 0
        with disk_faults(self._path), self._path.open("rb") as file:
            while content := file.read(_BLOCK * _FIELDS.itemsize):
                block = np.frombuffer(content, _FIELDS)
                yield start, block
                start += len(block)

    def _column(self, name: str) -> Any:
        column = np.empty(self._rows, _FIELDS[name])
        for start, block in self._blocks():
            column[start : start + len(block)] = block[name]
        return column

    def _held_out(self, shares: list[Share], elsewhere: frozenset[str]) -> Digests:
        """Digests of the prompts that any data set holds out, sorted."""
        kept, also = ([getattr(share, name) for share in shares] for name in ("kept", "also_held_out"))
        parts = [np.array([_digest(key) for key in (*also, *elsewhere) if key is not None], f"S{_DIGEST_BYTES}")]
        for _, block in self._blocks():
            for number, key in enumerate(kept):
                below = block["prompt"][(block["flags"] & _BELOW > 0) & (block["source"] == number)]
                parts.append(np.unique(below if key is None else below[below != _digest(key)]))
        found: Digests = np.unique(np.concatenate(parts))
        return found

    def _states(self, block: npt.NDArray[np.void], duplicates: Mask) -> npt.NDArray[np.uint8]:
        held = member(block["prompt"], self._held)
        where_held = np.where(self._fractions[block["source"]] > 0, _EVAL, _HELD_ELSEWHERE)
        return np.where(duplicates, _DUPLICATE, np.where(held, where_held, _TRAIN)).astype(np.uint8)

    def _prompts(self, rows: Mask) -> int:
        digests = self._column("prompt")[rows]
        return len(digests) - int(repeated(digests).sum())

    def _contradictions(self) -> tuple[int, list[list[str]]]:
        """How many there are, and the ids of the first; see `prefopt.data.load`."""
        flags = self._column("flags")
        tell = np.flatnonzero((self._state >= _TRAIN) & (flags & _TELLS > 0))
        answers, swapped = self._column("answers")[tell], flags[tell] & _SWAPPED > 0
        both = with_both_directions(answers, swapped)
        # Training rows come first.
        order = both[np.argsort(self._state[tell[both]], kind="stable")]
        preferred: dict[tuple[bytes, bool], int] = {}
        count, listed = 0, list[tuple[int, int]]()
        for row, digest, direction in zip(tell[order], answers[order].tolist(), swapped[order].tolist(), strict=True):
            preferred.setdefault((digest, direction), row)
            if (opposite := preferred.get((digest, not direction))) is not None:
                count += 1
                if len(listed) < IDS_LISTED:
                    listed.append((opposite, row))
        if not listed:
            return 0, []
        identities = TokenRows(self._scratch)
        return count, [[identities[int(row)]["id"] for row in pair] for pair in listed]


def _say_nothing(line: str) -> None:
    """Stages tell in their manifest what they read."""


def _digest(key: str) -> bytes:
    return bytes.fromhex(key)[:_DIGEST_BYTES]
