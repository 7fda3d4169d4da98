"""Rows as a user of the trainers has them, to the token ids that the trainers need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data import formats
from prefopt.data.prompts import row_prompt
from prefopt.data.sampled import AsSampled
from prefopt.data.sources import SourceRow
from prefopt.data.templates import Encoder, ensure_chat_template
from prefopt.errors import DataError
from prefopt.records import PreferencePair, Unpaired, unpaired

TOKENISED = ("prompt_ids", "chosen_ids", "rejected_ids")


def pair_row(pair: PreferencePair, encoder: Encoder) -> dict[str, Any] | None:
    """A pair's token ids, weight, soft label and margin, as `PairCollator` takes them; None when it is left out."""
    ids = encoder.encode_pair(pair)
    if ids is None:
        return None
    return {**ids._asdict(), "weight": pair.weight, "probability": pair.probability, "margin": pair.margin}


def tokenised_pairs(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoded: Callable[[PreferencePair, Encoder], dict[str, Any] | None] = pair_row,
) -> Sequence[Mapping[str, Any]]:
    """Tokenise preference pairs; rows that are tokenised already are returned as they are.

    Over-long prompts lose their oldest turns; rows that cannot be used (empty, equal, too long) are left out.

    Args:
        rows: With `prompt_ids`, `chosen_ids` and `rejected_ids`, or in any format of docs/concepts.md that holds pairs.
        tokenizer: Gets the `transcript` chat template when it has none.
        max_length: Tokens of prompt and completion together.
        encoded: Makes a row of a pair; None where the pair is left out.

    Raises:
        DataError: When a row is wrong, or none is usable; with the reasons.
    """
    if len(rows) == 0 or all(name in rows[0] for name in TOKENISED):
        return rows
    ensure_chat_template(tokenizer, "auto")
    # A reward model is asked about texts, so only policies learn from the tokens that were sampled.
    encoder = Encoder(tokenizer, max_length, as_sampled=AsSampled(tokenizer) if encoded is pair_row else None)
    reasons: Counter[str] = Counter()
    numbered = (SourceRow(number, dict(row), f"row {number}") for number, row in enumerate(rows, 1))
    item_format, all_rows = formats.choose(numbered, "auto", formats.PAIRS)
    tokenised: list[Mapping[str, Any]] = []
    for _, item in formats.convert(all_rows, item_format, lambda reason: reasons.update([reason.value])):
        assert isinstance(item, PreferencePair)  # every format of PAIRS gives pairs
        row = encoded(item, encoder)
        if row is not None:
            tokenised.append(row)
    if not tokenised:
        reasons["too long"] += encoder.counts["dropped_too_long"]
        raise DataError(f"0 of {len(rows)} rows are usable: {dict(reasons)}")
    return tokenised


def tokenised_unpaired(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Sequence[Mapping[str, Any]]:
    """Tokenise completions marked as good or bad; rows that are tokenised already are returned as they are.

    Over-long prompts lose their oldest turns; rows that cannot be used (empty, too long, ties) are left out.

    Args:
        rows: With `prompt_ids`, `completion_ids` and `label`, or `prompt`, `completion` and `label`, or pairs in any
            format of docs/concepts.md.
        tokenizer: Gets the `transcript` chat template when it has none.
        max_length: Tokens of prompt and completion together.

    Raises:
        DataError: When a row is wrong, or none is usable; with the reasons.
    """
    if len(rows) == 0 or "completion_ids" in rows[0]:
        return rows
    ensure_chat_template(tokenizer, "auto")
    encoder = Encoder(tokenizer, max_length or tokenizer.model_max_length, as_sampled=AsSampled(tokenizer))
    reasons: Counter[str] = Counter()
    numbered = (SourceRow(number, dict(row), f"row {number}") for number, row in enumerate(rows, 1))
    item_format, all_rows = formats.choose(numbered, "auto", formats.UNPAIRED)
    tokenised: list[Mapping[str, Any]] = []
    for _, item in formats.convert(all_rows, item_format, lambda reason: reasons.update([reason.value])):
        assert isinstance(item, PreferencePair | Unpaired)  # every format of UNPAIRED gives one of them
        tokenised += unpaired_ids(unpaired(item), encoder)
    if not tokenised:
        reasons["too long"] += encoder.counts["dropped_too_long"]
        raise DataError(f"0 of {len(rows)} rows are usable: {dict(reasons)}")
    return tokenised


def unpaired_ids(rows: Sequence[Unpaired], encoder: Encoder) -> list[dict[str, Any]]:
    """Token ids of prompts and completions, and the labels; those that are too long are left out."""
    return [
        {"prompt_ids": ids.prompt_ids, "completion_ids": ids.completion_ids, "label": row.label}
        for row in rows
        if (ids := encoder.encode_answer(row.prompt, row.completion, row.sampled)) is not None
    ]


def tokenised_prompts(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int, reserve: int
) -> list[Mapping[str, Any]]:
    """Tokenise prompts; rows that have `prompt` (messages) and `prompt_ids` are kept.

    Args:
        rows: With `prompt` as text or messages, or in any format of docs/concepts.md that holds prompts.
        tokenizer: Gets the `transcript` chat template when it has none.
        max_length: Tokens of prompt and completion together.
        reserve: Tokens of them that completions need.

    Raises:
        DataError: When a row is wrong, or none is usable.
    """
    if len(rows) == 0:
        raise DataError("there are no prompts to train on")
    if "prompt_ids" in rows[0]:
        return list(rows)
    ensure_chat_template(tokenizer, "auto")
    encoder = Encoder(tokenizer, max_length)
    tokenised: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows, 1):
        prompt = row_prompt(dict(row), f"row {number}")
        ids = encoder.encode_prompt(prompt, reserve)
        if ids is not None:
            tokenised.append({"prompt": prompt, "prompt_ids": ids})
    if not tokenised:
        raise DataError(f"0 of {len(rows)} prompts fit into {max_length} tokens with {reserve} to answer")
    return tokenised


def tokenised_targets(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    reserve: int | None = None,
) -> list[Mapping[str, Any]]:
    """Tokenise what a student learns from a teacher; rows that are tokenised already are kept.

    Every row then has `teacher_prompt_ids`, which are the student's `prompt_ids` where the teacher reads the same.

    Args:
        rows: With `prompt_ids`, or with `prompt`, `completion` and `teacher_prompt` as text or messages.
        tokenizer: Gets the `transcript` chat template when it has none.
        max_length: Tokens of prompt and completion together.
        reserve: Tokens of a completion that the student is to give itself, where a row has none; None where all have.

    Raises:
        DataError: When a row is wrong or has no completion, or none is usable.
    """
    tokenised: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows, 1):
        found = dict(row) if "prompt_ids" in row else _target_ids(row, tokenizer, max_length, reserve, number)
        if found is None:
            continue
        if reserve is None and not len(found.get("completion_ids", ())):
            raise DataError(f"row {number} has no completion", "only a student that answers itself needs none")
        found.setdefault("teacher_prompt_ids", found["prompt_ids"])
        tokenised.append(found)
    if len(rows) and not tokenised:
        raise DataError(f"0 of {len(rows)} rows fit into {max_length} tokens")
    return tokenised


def _target_ids(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int, reserve: int | None, number: int
) -> dict[str, Any] | None:
    ensure_chat_template(tokenizer, "auto")
    encoder = Encoder(tokenizer, max_length)
    found = {name: row[name] for name in ("soft", "replay", "weight") if name in row}
    for name, column in (("prompt_ids", "prompt"), ("teacher_prompt_ids", "teacher_prompt")):
        if column not in row:
            continue
        prompt = row_prompt({"prompt": row[column]}, f"row {number}")
        if row.get("completion") is None:
            ids = encoder.encode_prompt(prompt, reserve or 0)
        else:
            both = encoder.encode_answer(prompt, row["completion"])
            ids = None if both is None else both.prompt_ids
            found |= {} if both is None else {"completion_ids": both.completion_ids}
        if ids is None:
            return None
        found[name] = ids
    return found
