"""Data sets of a recipe to records, split into training and held-out prompts, with an account of every row.

`load_pairs`, `load_demonstrations`, `load_prompts` and `load_texts` do the same five steps and differ in what they take
from a row: read, convert, leave out what is useless, leave out exact duplicates, split by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from prefopt.data import formats
from prefopt.data.contexts import in_context
from prefopt.data.formats import Item, Reason, RowDropped
from prefopt.data.report import DataReport, SourceReport
from prefopt.data.sources import Log, read_rows
from prefopt.data.splits import held_out, identity, prompt_key
from prefopt.errors import DataError
from prefopt.recipe.schema import DataSpec
from prefopt.records import Demonstration, Message, PreferencePair, Prompt, Unpaired, unpaired

T = TypeVar("T")
Text = str | tuple[Message, ...]
TOY_DEFAULT_ROWS = 1000
TOY_DEFAULT_NOISE = 0.1
_TOY_KINDS = ("corpus", "demonstrations", "preferences", "prompts")


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Records for training, records of held-out prompts, and what became of every row."""

    train: list[T]
    eval: list[T]
    report: DataReport


def load_pairs(
    names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int, log: Log = lambda line: None
) -> Loaded[PreferencePair]:
    """Loads preference pairs.

    Exact duplicates by the same annotator are left out. Contradictory pairs (people disagree which of the two answers
    is better) are kept, as disagreement is information that the losses use, and reported with their ids.

    Args:
        names: Data sets to load, in this order.
        data: All data sets of the recipe: a prompt that any of them holds out is in no training part.
        seed: The recipe's seed, not a stage's: all stages must agree on what is held out.
        log: Takes a line for each source that is opened.

    Raises:
        DataError: If a row is wrong, or no row is usable.
        EnvironmentFault: If the Hub or the disk cannot be read.
    """
    loaded = _load(names, data, seed, log, PAIRS)
    contradictions = tuple(_contradictions([*loaded.train, *loaded.eval]))
    if contradictions:
        log(f"{len(contradictions)} contradictory pairs, kept: {contradictions[0][0]} and {contradictions[0][1]}, …")
    return replace(loaded, report=replace(loaded.report, contradictions=contradictions))


def load_demonstrations(
    names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int, log: Log = lambda line: None
) -> Loaded[Demonstration]:
    """Loads demonstrations: of a pair, the answer that is preferred, and no completion that is marked as bad.

    Arguments and errors as `load_pairs`.
    """
    want = Want("demonstrations", formats.DEMONSTRATIONS, "demonstrations", _as_demonstration, _demonstration_key)
    return _load(names, data, seed, log, want)


def load_unpaired(
    names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int, log: Log = lambda line: None
) -> Loaded[Unpaired]:
    """Loads completions marked as good or bad; of a pair, which the report counts once, both answers.

    Arguments and errors as `load_pairs`.
    """
    want = Want("marked completions", formats.UNPAIRED, "preferences", _as_marked, _marked_key)
    loaded = _load(names, data, seed, log, want)
    train, evaluation = ([row for item in part for row in unpaired(item)] for part in (loaded.train, loaded.eval))
    return Loaded(train, evaluation, loaded.report)


def load_prompts(
    names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int, log: Log = lambda line: None
) -> Loaded[Prompt]:
    """Loads prompts, each once, from data of any kind that has them. Arguments and errors as `load_pairs`."""
    return _load(names, data, seed, log, Want("prompts", formats.PROMPTS, "preferences", _as_prompt, prompt_key))


def load_texts(
    names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int, log: Log = lambda line: None
) -> Loaded[Text]:
    """Loads texts for language modelling; conversations stay message tuples, to be rendered by a chat template.

    Arguments and errors as `load_pairs`. Texts without a prompt are split by their own content.
    """
    return _load(names, data, seed, log, Want("texts", formats.TEXTS, "corpus", _as_text, _text_key))


# ---- what each loader takes from an item -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Want(Generic[T]):
    """What a loader wants: the formats it can read, the toy data it takes by default, and how to take it."""

    what: str
    formats: tuple[str, ...]
    toy: str
    take: Callable[[Item, str, DataSpec], T]
    key: Callable[[T], str]


def _as_pair(item: Item, name: str, spec: DataSpec) -> PreferencePair:
    if not isinstance(item, PreferencePair):
        raise DataError(
            f"data set '{name}' holds no preference pairs", f"formats with pairs: {', '.join(formats.PAIRS)}"
        )
    return _marked(item, name, spec)


def _as_marked(item: Item, name: str, spec: DataSpec) -> PreferencePair | Unpaired:
    if not isinstance(item, PreferencePair | Unpaired):
        raise DataError(
            f"data set '{name}' does not say which completions are good",
            f"formats that do: {', '.join(formats.UNPAIRED)}",
        )
    if isinstance(item, PreferencePair) and item.probability == 0.5:
        raise RowDropped(Reason.TIE)
    return _marked(item, name, spec) if isinstance(item, Unpaired) else _as_pair(item, name, spec)


def _as_demonstration(item: Item, name: str, spec: DataSpec) -> Demonstration:
    if isinstance(item, PreferencePair):
        first = item.probability >= 0.5
        completion, sampled = (item.chosen, item.sampled_chosen) if first else (item.rejected, item.sampled_rejected)
        item = Demonstration(item.prompt, completion, item.weight, item.source, item.id, item.extra, sampled)
    if isinstance(item, Unpaired):
        if not item.label:
            raise RowDropped(Reason.MARKED_BAD)
        item = Demonstration(item.prompt, item.completion, item.weight, item.source, item.id, item.extra, item.sampled)
    if isinstance(item, str):
        raise DataError(f"data set '{name}' holds no demonstrations", "texts without prompts can only be pretrained on")
    if not isinstance(item, Demonstration):
        raise RowDropped(Reason.NO_ANSWER)
    return _marked(item, name, spec)


def _as_prompt(item: Item, name: str, spec: DataSpec) -> Prompt:
    if isinstance(item, str):
        raise DataError(f"data set '{name}' holds texts, which have no prompts", "name a data set that has prompts")
    return item if isinstance(item, tuple) else item.prompt


def _as_text(item: Item, name: str, spec: DataSpec) -> Text:
    if isinstance(item, PreferencePair | Unpaired):
        item = _as_demonstration(item, name, spec)
    if isinstance(item, Demonstration):
        return (*item.prompt, Message("assistant", item.completion))
    return item


_Record = TypeVar("_Record", PreferencePair, Demonstration, Unpaired)


def _marked(record: _Record, name: str, spec: DataSpec) -> _Record:
    return replace(record, source=record.source or name, weight=record.weight * spec.weight)


def split_key(item: Item) -> str:
    """Identity of the prompt, which for a whole conversation is all before the last answer; of a text, its own."""
    if isinstance(item, str):
        return _text_key(item)
    prompt = item if isinstance(item, tuple) else item.prompt
    answered = isinstance(item, tuple) and len(prompt) > 1 and prompt[-1].role == "assistant"
    return prompt_key(prompt[:-1] if answered else prompt)


def _pair_key(pair: PreferencePair) -> str:
    # Two annotators who agree are two votes, not a duplicate.
    return identity(prompt_key(pair.prompt), pair.chosen, pair.rejected, pair.annotator)


def _demonstration_key(item: Demonstration) -> str:
    return identity(prompt_key(item.prompt), item.completion)


def _marked_key(item: PreferencePair | Unpaired) -> str:
    if isinstance(item, PreferencePair):
        return _pair_key(item)
    return identity(prompt_key(item.prompt), item.completion, str(item.label))


def _text_key(text: Text) -> str:
    return identity("text", text) if isinstance(text, str) else prompt_key(text)


PAIRS = Want("pairs", formats.PAIRS, "preferences", _as_pair, _pair_key)


# ---- the five steps --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Taken(Generic[T]):
    name: str
    value: T
    split_key: str
    has_prompt: bool


def new_reports(names: tuple[str, ...], data: Mapping[str, DataSpec]) -> dict[str, SourceReport]:
    """An empty account for every data set to be loaded.

    Raises:
        DataError: For a name that the recipe does not have.
    """
    for name in names:
        if name not in data:
            raise DataError(f"no data set '{name}' in the recipe", f"it has: {', '.join(data) or 'none'}")
    return {name: SourceReport(name, data[name].path) for name in names}


def _load(names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int, log: Log, want: Want[T]) -> Loaded[T]:
    reports = new_reports(names, data)
    rows: list[_Taken[T]] = []
    seen: set[str] = set()
    held: frozenset[str] = frozenset()
    for name in names:
        read = items(name, data[name], seed, log, want, reports[name])
        keyed = [(split_key(item), _identified(item, number)) for item, number in read]
        held |= held_out((key for key, _ in keyed), data[name].eval_fraction, seed)
        for prompt, item in keyed:
            try:
                value = want.take(item, name, data[name])
                if (key := want.key(value)) in seen:
                    raise RowDropped(Reason.DUPLICATE)
            except RowDropped as drop:
                reports[name].drop(drop.reason)
                continue
            seen.add(key)
            rows.append(_Taken(name, value, prompt, not isinstance(item, str)))
    if any(row.has_prompt for row in rows):
        held |= held_out_elsewhere(names, data, seed, log)
    loaded = _split(rows, held, data, reports, want.what)
    log(
        f"{', '.join(names)}: {len(loaded.train)} {want.what} to train on, {len(loaded.eval)} held out; "
        f"{loaded.report.reasons()}"
    )
    return loaded


def _split(
    rows: list[_Taken[T]],
    held: frozenset[str],
    data: Mapping[str, DataSpec],
    reports: dict[str, SourceReport],
    what: str,
) -> Loaded[T]:
    train: list[T] = []
    evaluation: list[T] = []
    for row in rows:
        report = reports[row.name]
        if row.split_key not in held:
            train.append(row.value)
            report.keep(row.split_key, held_out=False)
        elif data[row.name].eval_fraction > 0:
            evaluation.append(row.value)
            report.keep(row.split_key, held_out=True)
        else:
            report.drop(Reason.HELD_OUT)
    account = DataReport(tuple(reports.values()))
    if not (train or evaluation):
        raise account.none_usable(what)
    return Loaded(train, evaluation, account)


def items(
    name: str, spec: DataSpec, seed: int, log: Log, want: Want[T], report: SourceReport
) -> Iterator[tuple[Item, str]]:
    """Yields what the rows of a data set hold, each with the id it has where the source gives none.

    Raises:
        DataError: As the loaders.
        EnvironmentFault: As the loaders.
    """
    with _naming(name):
        if spec.path == "toy":
            report.format = "toy"
            yield from ((in_context(item, spec.context), "") for item in report.count(_toy_items(spec, seed, want.toy)))
            return
        rows = formats.rename(read_rows(spec, log), spec.columns)
        found, rows = formats.choose(rows, spec.format, want.formats)
        report.format = found.name
        for _, item in formats.convert(report.count(rows), found, report.drop):
            # Counted over all files of a folder, where line numbers begin again in each.
            yield in_context(item, spec.context), f"{name}/{report.rows_read}"


def _identified(item: Item, number: str) -> Item:
    return (
        replace(item, id=number)
        if isinstance(item, PreferencePair | Demonstration | Unpaired) and not item.id
        else item
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the name of the data set before what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data set '{name}': {error.message}", error.remedy) from error


def _toy_items(spec: DataSpec, seed: int, default: str) -> Iterable[Item]:
    from prefopt.data.toy import world

    kind = spec.name or default
    count = TOY_DEFAULT_ROWS if spec.max_samples is None else spec.max_samples
    noise = TOY_DEFAULT_NOISE if spec.noise is None else spec.noise
    makers: dict[str, Callable[[int, int], Iterable[Any]]] = {
        "corpus": world.corpus,
        "demonstrations": world.demonstrations,
        "preferences": partial(world.preferences, noise=noise),
        "prompts": world.prompts,
    }
    if kind not in makers:
        raise DataError(f"the toy world has no '{kind}'", f"name: {', '.join(_TOY_KINDS)}")
    return makers[kind](count, seed if spec.seed is None else spec.seed)


# ---- held out by data sets that are not loaded -----------------------------------------------------------------------


def consulted(names: tuple[str, ...], data: Mapping[str, DataSpec]) -> tuple[str, ...]:
    """The data sets that are read, though not loaded, to learn which prompts they hold out.

    What a stage trains on depends on them too, so their fingerprints belong in its key.
    """
    return tuple(
        name for name, spec in data.items() if name not in names and spec.eval_fraction > 0 and spec.format != "text"
    )


def held_out_elsewhere(names: tuple[str, ...], data: Mapping[str, DataSpec], seed: int, log: Log) -> frozenset[str]:
    """Keys of the prompts that the data sets hold out which are not loaded; see `consulted`."""
    held: frozenset[str] = frozenset()
    for name in consulted(names, data):
        log(f"{name}: read for the prompts that it holds out")
        with _naming(name):
            keys = (split_key(item) for item in _prompted_items(data[name], seed, log))
            held |= held_out(keys, data[name].eval_fraction, seed)
    return held


def _prompted_items(spec: DataSpec, seed: int, log: Log) -> Iterator[Item]:
    """The items of a data set whatever its format; nothing for texts, which have no prompts."""
    if spec.path == "toy":
        yield from (in_context(item, spec.context) for item in _toy_items(spec, seed, "preferences"))
        return
    rows = formats.rename(read_rows(spec, log), spec.columns)
    known = tuple(formats.FORMATS)
    if spec.format == "auto":
        first = list(islice(rows, formats.ROWS_LOOKED_AT))
        if not first:
            return
        # Which of several fitting formats is meant matters to whoever loads it; they agree on the prompt.
        found = formats.detect(first, known, first_match=True)
        rows = chain(first, rows)
    else:
        found, rows = formats.choose(rows, spec.format, known)
    if found.name != "text":
        yield from (in_context(item, spec.context) for _, item in formats.convert(rows, found, lambda reason: None))


def _contradictions(pairs: Iterable[PreferencePair]) -> Iterator[tuple[str, str]]:
    """Ids of rows that prefer opposite answers of the same two; ties contradict nobody."""
    preferred: dict[tuple[str, str, str], str] = {}
    for pair in pairs:
        first, second = identity(pair.chosen), identity(pair.rejected)
        if pair.probability == 0.5 or first == second:
            continue
        better, worse = (first, second) if pair.probability > 0.5 else (second, first)
        prompt = prompt_key(pair.prompt)
        preferred.setdefault((prompt, better, worse), pair.id)
        if (prompt, worse, better) in preferred:
            yield preferred[prompt, worse, better], pair.id
