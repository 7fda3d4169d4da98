"""Tokenised preference pairs of a stage: prepared once for all stages, seeds and runs that train on the same ones."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from prefopt.data.load import consulted
from prefopt.data.pair_encoder import PairEncoder
from prefopt.data.prepare import PAIR_IDS, prepare_pairs
from prefopt.data.sampled import AsSampled, tokenizer_content
from prefopt.data.sources import fingerprint
from prefopt.data.templates import check_drop_share
from prefopt.data.token_rows import EVAL, TRAIN, Columns, TokenRows
from prefopt.pipeline.adapters import Rows
from prefopt.pipeline.base_model import OpenBase, data_of, data_policy
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.schema import DataSpec, DPOSpec, RewardSpec
from prefopt.store.entries import entry
from prefopt.store.files import disk_faults, read_json, sha256_json, write_json
from prefopt.store.hashing import HashCache

# What `prefopt.trainers.rows.pair_row` and `prefopt.trainers.reward_rows.reward_row` take of a pair.
PAIR_COLUMNS = Columns(PAIR_IDS, ("weight", "probability", "margin"))
REWARD_COLUMNS = Columns(
    PAIR_IDS, (*PAIR_COLUMNS.numbers, "score_chosen", "score_rejected"), ("source", "annotator"), ("axes",)
)
# Raised by the change after which the same data gives other rows, or rows are stored in another way.
REVISION = 2
FOLDER = "rows"
_ACCOUNT = "account.json"
_COMMIT = re.compile("[0-9a-f]{40}")
_LIBRARIES = ("tokenizers", "transformers", "jinja2")
# What decides nothing about rows, or stands elsewhere in the key.
_NOT_OF_ROWS = {"path", "overlong", "max_dropped"}


def pair_rows(
    spec: DPOSpec | RewardSpec, inputs: Inputs, context: StageContext, base: OpenBase, columns: Columns
) -> Rows:
    """Read and tokenise the pairs of a stage, or take them from the cache.

    Args:
        spec: The stage's options.
        inputs: Finished input stages.
        context: The stage's context.
        base: With the tokenizer.
        columns: Of the rows.

    Raises:
        DataError: When a row is wrong, none is usable, or too many cannot be used.
    """
    sets = data_of(inputs, context)
    overlong, max_dropped = data_policy(spec.data, sets)
    length = base.max_length(spec.max_length)
    # A reward model is asked about texts, and reads them here as it does there.
    as_sampled = not isinstance(spec, RewardSpec)
    content = {
        "revision": REVISION,
        "columns": columns.to_json(),
        "names": list(spec.data),
        "data": {name: _data_set(name, sets, context) for name in (*spec.data, *consulted(spec.data, sets))},
        "seed": context.recipe.seed,
        "tokenizer": tokenizer_content(base.tokenizer),
        "max_length": length,
        "overlong": overlong,
        "as_sampled": as_sampled,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }

    def make(folder: Path) -> None:
        context.log(f"tokenising the pairs of {', '.join(spec.data)}")
        own = AsSampled(base.tokenizer) if as_sampled else None
        encoder = PairEncoder(base.tokenizer, length, overlong, own)
        prepared = prepare_pairs(spec.data, sets, context.recipe.seed, encoder, folder, columns)
        write_json(folder / _ACCOUNT, prepared._asdict())

    folder = entry(context.cache / FOLDER, sha256_json(content), make, context.log)
    account = read_json(folder / _ACCOUNT)
    check_drop_share(account["counts"], length, account["refusal"], max_dropped)
    for name, source in account["data"]["sources"].items():
        source["path"] = sets[name].path  # the same content may lie elsewhere now
    details = {"data": account["data"], "encoding": {"chat_template": base.template, **account["counts"]}}
    return Rows(TokenRows.of_set(folder, TRAIN), TokenRows.of_set(folder, EVAL), details)


def _data_set(name: str, sets: dict[str, DataSpec], context: StageContext) -> dict[str, Any]:
    """The content of a data set and the options of the recipe that decide rows; not where it lies."""
    spec = sets[name]
    content = fingerprint(spec)
    if content["kind"] == "files":
        hashes = HashCache(context.cache / "hashes.json")
        with disk_faults(Path(spec.path)):
            content["files"] = [[Path(file).name, hashes.file(Path(file))] for file in content["files"]]
    elif content["kind"] == "hub" and not _COMMIT.fullmatch(spec.revision or ""):
        # What a branch holds may change: no other stage is to have these rows.
        content["stage"] = context.key
    return {**spec.model_dump(mode="json", exclude=_NOT_OF_ROWS), "content": content}
