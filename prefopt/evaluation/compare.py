"""Which of several policies scores higher on the same prompts, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.stats.intervals import Interval, bootstrap_crossed
from prefopt.stats.paired import holm, sign_flip_test
from prefopt.stats.power import detectable_difference, standard_error_of
from prefopt.stats.ratings import Game, bradley_terry_intervals, elo

Floats = NDArray[np.float64]
LEVEL = 0.95
ALPHA = 0.05  # of the corrected p-values
_FITS = 1000  # of a bootstrap of strengths: each is an optimisation


@dataclass(frozen=True)
class Entry:
    """One policy that is compared.

    Attributes:
        label: What it is called in tables and sentences.
        seeds: By training seed, the mean score of the policy's answers to each prompt, by the prompt's key.
    """

    label: str
    seeds: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Against:
    """How an entry does against the reference; differences are its score minus the reference's, in units of the score.

    Attributes:
        reference: Label of the reference.
        difference: Mean over seeds and prompts; the interval is over both.
        p_value: Two-sided, that differences per prompt are symmetric about 0; over prompts, for these seeds.
        p_holm: The same, corrected for the number of entries that were compared (Holm 1979).
        win_rate: Share of prompts with the higher score, ties as half.
        detectable: The true difference that would have been shown with a chance of 80 %; None where the interval has no
            width, so that nothing is known of it.
        paired_seeds: Whether both have the same seeds, which were then compared one by one.
        same: Whether both have the same score everywhere.
    """

    reference: str
    difference: Interval
    p_value: float
    p_holm: float
    win_rate: Interval
    detectable: float | None
    paired_seeds: bool
    same: bool

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0, and the corrected p-value is below 0.05."""
        return not self.difference.low <= 0 <= self.difference.high and self.p_holm < ALPHA


@dataclass(frozen=True)
class Standing:
    """What was found of one entry.

    Attributes:
        label: Of the entry.
        mean: Mean score over seeds and prompts, with an interval over both; over prompts alone where there is one seed.
        seed_means: Mean score over prompts of every seed.
        against: None for the reference.
        elo: Bradley-Terry strength on the scale of Elo, the reference at 1000, with an interval over prompts; None
            where fewer than three are compared.
    """

    label: str
    mean: Interval
    seed_means: Mapping[int, float]
    against: Against | None = None
    elo: Interval | None = None

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest mean of a seed."""
        return min(self.seed_means.values()), max(self.seed_means.values())

    @property
    def verdict(self) -> str:
        """What may be said of it, in a sentence without full stop; empty for the reference."""
        return "" if self.against is None else _verdict(self.label, self.against)


@dataclass(frozen=True)
class Comparison:
    """Policies on the same prompts.

    Attributes:
        reference: Label of the entry that the others are compared with.
        prompts: How many prompts all entries have in all their seeds; only these are used.
        left_out: How many other prompts some entry has.
        standings: In the order given.
    """

    reference: str
    prompts: int
    left_out: int
    standings: tuple[Standing, ...]

    @property
    def verdicts(self) -> list[str]:
        """A sentence for every entry but the reference."""
        return [standing.verdict for standing in self.standings if standing.against is not None]

    def to_json(self) -> dict[str, Any]:
        """Everything found, as plain JSON values."""
        return {
            "reference": self.reference,
            "prompts": self.prompts,
            "prompts_left_out": self.left_out,
            "level": LEVEL,
            "entries": [_standing_json(standing) for standing in self.standings],
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns, and a row of text for every entry."""
        columns = [column for column in _COLUMNS if any(column.cell(item) is not None for item in self.standings)]
        titles = [column.title.format(reference=self.reference) for column in columns]
        return titles, [[column.cell(item) or "–" for column in columns] for item in self.standings]


def compare(
    entries: Sequence[Entry], *, reference: str | None = None, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare policies on the prompts that all of them have in all their seeds.

    Means and differences have percentile bootstrap intervals over seeds and prompts (Owen 2007), over prompts alone
    where there is one seed. Entries with the same seeds are compared seed by seed; otherwise every seed of one with
    every seed of the other, and the seeds of each are drawn on their own. P-values are of a sign-flip test over prompts
    (Fisher 1935), corrected after Holm (1979).

    Args:
        entries: At least two, with different labels, each with at least one seed.
        reference: Label of the entry that the others are compared with; the first by default.
        resamples: Bootstrap samples, and sign flips.
        seed: Of both.

    Raises:
        ValueError: For entries that are fewer, share a label or have no seed, a reference that is none of them, scores
            that are not finite, or no prompt in common.
    """
    chosen = _checked(entries, reference)
    scores = [scored for entry in entries for scored in entry.seeds.values()]
    common = sorted(set.intersection(*(set(scored) for scored in scores)))
    everything = set().union(*scores)
    if not common:
        raise ValueError(f"the entries have none of their {len(everything)} prompts in common")
    tables = {entry.label: _table(entry, common) for entry in entries}
    draw = _Draw(resamples, seed)
    found = {entry.label: _against(entry, chosen, tables, draw) for entry in entries if entry.label != chosen.label}
    corrected = dict(zip(found, holm([one.p_value for one in found.values()]), strict=True))
    ratings = _ratings(tables, chosen.label, draw) if len(entries) > 2 else {}
    standings = [
        Standing(
            label=entry.label,
            mean=bootstrap_crossed(tables[entry.label].tolist(), level=LEVEL, resamples=resamples, seed=seed),
            seed_means=dict(zip(sorted(entry.seeds), tables[entry.label].mean(1).tolist(), strict=True)),
            against=replace(found[entry.label], p_holm=corrected[entry.label]) if entry.label in found else None,
            elo=ratings.get(entry.label),
        )
        for entry in entries
    ]
    return Comparison(chosen.label, len(common), len(everything) - len(common), tuple(standings))


# ---- numbers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    resamples: int
    seed: int


def _checked(entries: Sequence[Entry], reference: str | None) -> Entry:
    """The reference."""
    labels = [entry.label for entry in entries]
    if len(entries) < 2:
        raise ValueError(f"need at least two entries to compare, got {len(entries)}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"entries need labels of their own: {', '.join(labels)}")
    if bare := [entry.label for entry in entries if not entry.seeds]:
        raise ValueError(f"{bare[0]} has no scores")
    if reference is not None and reference not in labels:
        raise ValueError(f"{reference!r} is none of {', '.join(labels)}")
    return entries[0 if reference is None else labels.index(reference)]


def _table(entry: Entry, prompts: Sequence[str]) -> Floats:
    """Scores, a row per seed in ascending order and a column per prompt."""
    table = np.array([[entry.seeds[seed][prompt] for prompt in prompts] for seed in sorted(entry.seeds)], np.float64)
    if not np.isfinite(table).all():
        raise ValueError(f"{entry.label} has scores that are not finite")
    return table


def _against(entry: Entry, reference: Entry, tables: Mapping[str, Floats], draw: _Draw) -> Against:
    paired = set(entry.seeds) == set(reference.seeds)
    first, second = tables[entry.label], tables[reference.label]
    difference, per_prompt = _bootstrap(np.subtract, first, second, paired, draw)
    win_rate, _ = _bootstrap(_wins, first, second, paired, draw)
    p_value = sign_flip_test(per_prompt.tolist(), resamples=draw.resamples, seed=draw.seed)
    error = standard_error_of(difference.low, difference.high, level=LEVEL)
    return Against(
        reference=reference.label,
        difference=difference,
        p_value=p_value,
        p_holm=p_value,
        # A mean of ones may be rounded to above 1.
        win_rate=Interval(*(min(1.0, share) for share in win_rate)),
        # Equal differences leave rounding between the ends of the interval.
        detectable=detectable_difference(error, level=LEVEL) if error > 1e-12 * np.abs(per_prompt).max() else None,
        paired_seeds=paired,
        same=first.shape == second.shape and bool((first == second).all()),
    )


def _wins(first: Floats, second: Floats) -> Floats:
    """1 where the first is higher, 0 where it is lower, one half for a tie."""
    return (1 + np.sign(first - second)) / 2


def _bootstrap(
    measure: Callable[[Floats, Floats], Floats], first: Floats, second: Floats, paired: bool, draw: _Draw
) -> tuple[Interval, Floats]:
    """Mean of a measure of two scores with its interval, and its mean over seeds for every prompt."""
    if paired:
        table = measure(first, second)
        interval = bootstrap_crossed(table.tolist(), level=LEVEL, resamples=draw.resamples, seed=draw.seed)
        return interval, table.mean(0)
    pairs = np.array([measure(one, other) for one, other in product(first, second)])
    return _bootstrap_apart(pairs, (len(first), len(second)), draw), pairs.mean(0)


def _bootstrap_apart(pairs: Floats, seeds: tuple[int, int], draw: _Draw) -> Interval:
    """As `bootstrap_crossed`, for a row per pair of seeds: those of the first and of the second are drawn on their own.

    Seeds of different trainings are not pairs, so averaging them first would hide how much they vary.
    """
    generator = np.random.default_rng(draw.seed)
    prompts = pairs.shape[1]
    first, second = (generator.multinomial(n, np.full(n, 1 / n), size=draw.resamples) / n for n in seeds)
    rows = (first[:, :, None] * second[:, None, :]).reshape(draw.resamples, -1)
    means = np.empty(draw.resamples)
    chunk = max(1, 10_000_000 // prompts)
    for start in range(0, draw.resamples, chunk):
        part = rows[start : start + chunk]
        counts = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=len(part)) / prompts
        means[start : start + chunk] = ((part @ pairs) * counts).sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(pairs.mean()), float(low), float(high))


def _ratings(tables: Mapping[str, Floats], reference: str, draw: _Draw) -> dict[str, Interval]:
    """Strengths from who has the higher score on each prompt, as the mean over all pairs of seeds."""
    games: list[Game] = []
    prompts: list[int] = []
    for first, second in combinations(tables, 2):
        pairs = product(tables[first], tables[second])
        outcomes = np.mean([_wins(one, other) for one, other in pairs], axis=0)
        games += [Game(first, second, float(outcome)) for outcome in outcomes]
        prompts += range(len(outcomes))
    fits = min(draw.resamples, _FITS)
    strengths = bradley_terry_intervals(games, reference, prompts, level=LEVEL, resamples=fits, seed=draw.seed)
    return {label: Interval(*(elo(value) for value in interval)) for label, interval in strengths.items()}


# ---- words -----------------------------------------------------------------------------------------------------------


def _verdict(label: str, against: Against) -> str:
    low, high = against.difference.low, against.difference.high
    if against.shown and against.difference.estimate > 0:
        return f"{label} beats {against.reference} by {_text(against.difference)}"
    if against.shown:
        return f"{label} loses to {against.reference} by {_text(Interval(-against.difference.estimate, -high, -low))}"
    said = f"no difference shown between {label} and {against.reference}: {_text(against.difference)}"
    if not low <= 0 <= high:
        said += f", but p = {_p_value(against.p_holm)}"
    if against.same:
        return f"{said}; all their scores are the same"
    if against.detectable is None:
        return f"{said}; so few prompts show nothing"
    return f"{said}; this sample could have shown {_number(against.detectable, _digits(against.difference))}"


def _digits(interval: Interval) -> int:
    """Decimals that show two digits of the interval's width, at least two."""
    width = interval.high - interval.low
    return 2 if width <= 0 else min(8, max(2, 1 - math.floor(math.log10(width))))


def _number(value: float, digits: int) -> str:
    """With 0 without a sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _text(interval: Interval, digits: int | None = None) -> str:
    digits = _digits(interval) if digits is None else digits
    estimate, low, high = (_number(value, digits) for value in interval)
    return f"{estimate} [{low}, {high}]"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True)
class _Column:
    """A column; a cell is None where an entry has nothing to say in it."""

    title: str
    cell: Callable[[Standing], str | None]


def _of_others(cell: Callable[[Against], str | None]) -> Callable[[Standing], str | None]:
    return lambda standing: None if standing.against is None else cell(standing.against)


def _spread(standing: Standing) -> str | None:
    if len(standing.seed_means) < 2:
        return None
    low, high = (_number(value, _digits(standing.mean)) for value in standing.spread)
    return f"{low} to {high}"


def _win_rate(against: Against) -> str:
    estimate, low, high = against.win_rate
    return f"{estimate:.1%} [{low:.1%}, {high:.1%}]"


def _detectable(against: Against) -> str | None:
    return None if against.detectable is None else _number(against.detectable, _digits(against.difference))


def _elo(standing: Standing) -> str | None:
    if standing.elo is None:
        return None
    # The reference is where it is by definition.
    return _number(standing.elo.estimate, 0) if standing.against is None else _text(standing.elo, 0)


_COLUMNS = (
    _Column("policy", lambda standing: standing.label),
    _Column("mean score", lambda standing: _text(standing.mean)),
    _Column("seeds", lambda standing: str(len(standing.seed_means))),
    _Column("over seeds", _spread),
    _Column("minus {reference}", _of_others(lambda against: _text(against.difference))),
    _Column("p (Holm)", _of_others(lambda against: _p_value(against.p_holm))),
    _Column("win rate", _of_others(_win_rate)),
    _Column("could have shown", _of_others(_detectable)),
    _Column("Elo", _elo),
)


def _standing_json(standing: Standing) -> dict[str, Any]:
    low, high = standing.spread
    said: dict[str, Any] = {
        "label": standing.label,
        "mean": standing.mean._asdict(),
        "seeds": {str(seed): mean for seed, mean in standing.seed_means.items()},
        "spread": {"low": low, "high": high},
        "elo": None if standing.elo is None else standing.elo._asdict(),
        "against": None,
        "verdict": standing.verdict or None,
    }
    if standing.against is not None:
        intervals = ("difference", "win_rate")
        plain = {name: value for name, value in asdict(standing.against).items() if name not in intervals}
        pairs = {name: getattr(standing.against, name)._asdict() for name in intervals}
        said["against"] = {**plain, **pairs, "shown": standing.against.shown}
    return said
