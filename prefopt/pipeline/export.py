"""From the artefact of a stage to a folder that PEFT or transformers open without prefopt.

The folder appears whole or not at all: it is written beside, what was written is opened by those libraries alone and
must give the logits of the model that `prefopt sample` and the stages after this one see, and only then is it renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from prefopt.data.templates import Encoder
from prefopt.errors import EnvironmentFault, InputError
from prefopt.models.export import (
    dequantised,
    is_quantised,
    logits_of,
    merged,
    reopened,
    require_equal,
    sequence_classifier,
    with_adapter,
)
from prefopt.models.flatten import CONFIG_FILE, WEIGHTS_FILE
from prefopt.models.heads import RewardModel, hang_reward
from prefopt.models.loading import BaseLocation, load_base, locate_base
from prefopt.models.reward_artefact import read_artefact
from prefopt.models.roles import POLICY, REWARD, load_frozen
from prefopt.pipeline.artefact import ModelArtefact
from prefopt.pipeline.base_model import adapter_of, positions_of, stage_directories
from prefopt.pipeline.card import Exported, model_card
from prefopt.pipeline.loading import prepare_torch
from prefopt.pipeline.sampling import stage_tokenizer
from prefopt.records import Message
from prefopt.store.files import disk_faults, fsync_file, fsync_tree, make_folder, remove, write_atomic

# What the proof is made on; what they say does not matter, only that both models read the same.
PROBES = (
    "What is the price?",
    "List three colours, and say which of them you like most.",
    "Why is the sky blue? Answer in one short sentence, please: I have no time today.",
)
_ANSWER = "It is blue, because the air scatters blue light more than red light."


def export(
    artefact: ModelArtefact, out: Path | None, *, merge: bool, trust_remote_code: bool, log: Callable[[str], None]
) -> Exported:
    """Write an adapter, or a merged model, with tokenizer and card.

    Args:
        artefact: Verified, of one of `prefopt.pipeline.artefact.EXPORT_KINDS`.
        out: Folder to write; missing or empty. None: `export/STAGE-KEY12` of the run, and `-merged` after that
            for a merged model.
        merge: Whether the adapter is merged into the base's weights.
        trust_remote_code: The command line's half of the double opt-in.
        log: Takes one line for the person who watches.

    Raises:
        InputError: When the folder is not empty, the architecture has no model of the wanted task, or a reward stage
            is an ensemble.
        EnvironmentFault: When the base cannot be read, or the folder not written.
        IntegrityError: When what was written does not give the same logits.
    """
    adapter = adapter_of(artefact.trained.stage, artefact.inputs)
    if artefact.trained.kind == "reward":
        _require_one_model(artefact.trained.stage, artefact.trained.directory)
    merge = merge and adapter is not None
    folder = _destination(artefact, out, merge)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    prepare_torch()
    opened = _open(artefact, adapter, artefact.model.trust_remote_code and trust_remote_code)
    try:
        with _appearing(folder) as staging:
            gap = _write(opened, staging, folder, merge, log)
            done = Exported(folder, merge, opened.location, opened.scores, str(opened.dtype), gap, len(opened.rows))
            write_atomic(staging / "README.md", model_card(artefact, done))
    except torch.OutOfMemoryError as error:
        remedy = "hide the device: CUDA_VISIBLE_DEVICES= prefopt export …"
        raise EnvironmentFault("out of device memory", remedy) from error
    return done


def _require_one_model(stage: str, directory: Path) -> None:
    """Refuse what no file format of PEFT or transformers can hold: the mean of several models, or two scores."""
    described = read_artefact(directory)
    if len(described.adapters) > 1 or described.offsets or len(described.axes) > 1 or described.origin:
        raise InputError(
            f"stage {stage} is no single reward model: it has members, a second axis or a constant",
            "export a stage of plain pairs without 'ensemble', or score with prefopt",
        )


def _destination(artefact: ModelArtefact, out: Path | None, merge: bool) -> Path:
    trained = artefact.trained
    name = f"{trained.stage}-{trained.manifest.key[:12]}" + ("-merged" if merge else "")
    folder = Path(os.path.abspath((out or artefact.run.root / "export" / name).expanduser()))
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is no folder", "name another with --out")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty, and nothing is overwritten", "remove it, or name another with --out")
    return folder


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `folder` where the block ends well, and else is removed."""
    make_folder(folder.parent)
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    make_folder(staging)
    try:
        yield staging
        fsync_tree(staging)
        with disk_faults(folder):
            os.rename(staging, folder)  # refuses a folder that has something in it by now
            fsync_file(folder.parent)
    except BaseException:
        remove(staging)
        raise


@dataclass(frozen=True)
class _Opened:
    """A stage's model as prefopt computes with it.

    Attributes:
        base: Without adapters; what it computes first was noted.
        location: Of the base.
        adapter: Folder; None for a stage that is a base itself.
        tokenizer: As the stage left it, with its chat template.
        scores: Whether it is a reward model.
        rows: Token ids of the proof.
        expected: Its logits.
        dtype: What it computes in.
        options: To open it again in the same way.
    """

    base: PreTrainedModel
    location: BaseLocation
    adapter: Path | None
    tokenizer: PreTrainedTokenizerBase
    scores: bool
    rows: list[list[int]]
    expected: list[Tensor]
    dtype: torch.dtype
    options: dict[str, Any]

    @property
    def classifier_pad(self) -> int | None:
        """The id a classifier may take for padding: the end token ends rows and must be read."""
        pad = self.tokenizer.pad_token_id
        return None if pad is None or pad == self.tokenizer.eos_token_id else int(pad)


def _open(artefact: ModelArtefact, adapter: Path | None, trust: bool) -> _Opened:
    location = locate_base(artefact.model, stage_directories(artefact.inputs))
    tokenizer, _ = stage_tokenizer(artefact, location, trust)
    base = load_base(location, artefact.model, trust_remote_code=trust)
    scores = artefact.trained.kind == "reward"
    model: nn.Module = base
    if adapter is not None and scores:
        model = RewardModel(*hang_reward(base, adapter, REWARD))
    elif adapter is not None:
        model = load_frozen(base, {POLICY: adapter})
    rows = _probes(tokenizer, positions_of(base.config.get_text_config()))
    expected = logits_of(model, rows)
    if adapter is not None:
        base = cast(PeftModel, getattr(model, "peft", model)).unload()
    options: dict[str, Any] = {"attn_implementation": artefact.model.attn_implementation, "trust_remote_code": trust}
    dtype = next(base.parameters()).dtype if not is_quantised(base) else base.dtype
    return _Opened(base, location, adapter, tokenizer, scores, rows, expected, dtype, options)


def _probes(tokenizer: PreTrainedTokenizerBase, positions: int) -> list[list[int]]:
    encoder = Encoder(tokenizer, min(positions, 512), "trim_prompt")
    answers = [encoder.encode_answer((Message("user", text),), _ANSWER[: 8 * (i + 1)]) for i, text in enumerate(PROBES)]
    rows = [[*ids.prompt_ids, *ids.completion_ids] for ids in answers if ids is not None]
    if not rows:
        raise InputError(f"none of {len(PROBES)} short questions fits into the model's {positions} positions")
    return rows


def _write(opened: _Opened, staging: Path, folder: Path, merge: bool, log: Callable[[str], None]) -> float:
    """Write everything but the card; the largest difference that the proof finds."""
    opened.tokenizer.save_pretrained(staging)
    if merge or opened.adapter is None:
        return _write_model(opened, staging, folder, log)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with disk_faults(folder):
            shutil.copyfile(opened.adapter / name, staging / name)
    base = sequence_classifier(opened.base, opened.classifier_pad) if opened.scores else opened.base
    log("comparing its logits with those of the stage")
    return require_equal(opened.expected, with_adapter(base, staging), opened.rows, folder)


def _write_model(opened: _Opened, staging: Path, folder: Path, log: Callable[[str], None]) -> float:
    if is_quantised(opened.base):
        log("the base is in 4 bit: merging into the weights that these bits stand for")
    base = dequantised(opened.base)
    if opened.scores:
        base = sequence_classifier(base, opened.classifier_pad)
    model = base if opened.adapter is None else merged(base, opened.adapter)
    with disk_faults(folder):
        model.save_pretrained(staging)
    log("comparing its logits with those of the stage")
    return require_equal(opened.expected, reopened(model, staging, **opened.options), opened.rows, folder)
