"""The card of an exported model: what it is, how to open it, and what it was made from; all of it from the manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from prefopt import __version__
from prefopt.errors import IntegrityError
from prefopt.models.loading import BaseLocation
from prefopt.pipeline.artefact import ModelArtefact
from prefopt.pipeline.keys import KEY_FILE
from prefopt.store.files import read_json

_ADAPTER = """from peft import PeftModel
from transformers import {auto}, AutoTokenizer

base = {auto}.from_pretrained({base!r}{options})
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
"""
_MODEL = """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
"""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        merged: Whether the adapter is in the base's weights.
        base: What the stage was trained on.
        scores: Whether it is a reward model.
        dtype: What it computed in while the proof was made.
        gap: The largest difference of a logit from the stage's own, as a share of the largest logit.
        rows: How many rows the proof was made on.
    """

    folder: Path
    merged: bool
    base: BaseLocation
    scores: bool
    dtype: str
    gap: float
    rows: int

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "folder": str(self.folder),
            "merged": self.merged,
            "base": self.base.name,
            "task": "SEQ_CLS" if self.scores else "CAUSAL_LM",
            "dtype": self.dtype.removeprefix("torch."),
            "largest_gap": self.gap,
            "rows": self.rows,
        }


def model_card(artefact: ModelArtefact, exported: Exported) -> str:
    """The README.md of an exported folder, with the front matter that the Hub reads.

    Raises:
        IntegrityError: When what the stage's key was made of cannot be read.
    """
    trained = artefact.trained
    whole = exported.merged or trained.kind == "pretrain"
    what = "a reward model" if exported.scores else "a policy" if trained.kind != "pretrain" else "a base model"
    form = "as a whole model" if whole else f"as a LoRA adapter on {exported.base.name}"
    if exported.merged:
        form = f"merged into {exported.base.name}"
    parts = [
        _front_matter(artefact, exported, whole),
        f"# {artefact.recipe.name}: {trained.stage}\n",
        f"The `{trained.kind}` stage `{trained.stage}` of the recipe `{artefact.recipe.name}`: {what}, {form}."
        + (f"\n\n{artefact.recipe.description}" if artefact.recipe.description else ""),
        "## Open it\n\n```python\n" + _code(artefact, exported, whole) + "```" + _notes(artefact, exported, whole),
        "## What it was made from\n\n" + _table(("what", "value"), _origin(artefact, exported)),
        "## Options\n\n```yaml\n" + _options(artefact) + "```",
    ]
    if trained.manifest.metrics:
        numbers = [(name, f"{value:.6g}") for name, value in sorted(trained.manifest.metrics.items())]
        parts.append("## Numbers of the stage\n\n" + _table(("metric", "value"), numbers))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _front_matter(artefact: ModelArtefact, exported: Exported, whole: bool) -> str:
    entries: dict[str, object] = {
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-classification" if exported.scores else "text-generation",
        "tags": ["prefopt", artefact.trained.kind, *([] if whole else ["lora"])],
    }
    if not os.path.isdir(exported.base.path):
        entries["base_model"] = exported.base.name
    return "---\n" + yaml.safe_dump(entries, sort_keys=True) + "---"


def _code(artefact: ModelArtefact, exported: Exported, whole: bool) -> str:
    auto = "AutoModelForSequenceClassification" if exported.scores else "AutoModelForCausalLM"
    options = ", num_labels=1" if exported.scores else ""
    return (_MODEL if whole else _ADAPTER).format(auto=auto, base=exported.base.name, options=options)


def _notes(artefact: ModelArtefact, exported: Exported, whole: bool) -> str:
    lines = []
    if not whole and exported.base.name in artefact.inputs:
        lines.append(
            f"The base is the stage `{exported.base.name}` of the same run: "
            f"`prefopt export RUN --stage {exported.base.name}` writes it; give its folder in the place of its name."
        )
    elif not whole and os.path.isdir(exported.base.path):
        lines.append(
            f"`{exported.base.name}` was a folder of the machine that it was trained on: give the base's folder in the "
            "place of its name."
        )
    if exported.scores:
        lines.append(
            "The score is read at the last token that is not the padding of the model's configuration, and a row ends "
            "with the end token. Where the two are the same, set `config.pad_token_id = None` and give one row at a "
            "time."
        )
    if artefact.model.load_in_4bit and not whole:
        lines.append("The base was in 4 bit (NF4, double quantisation) while it was trained: open it in the same way.")
    if artefact.model.load_in_4bit and whole:
        lines.append("The base was in 4 bit: the adapter is merged into the weights that these bits stand for.")
    return "".join(f"\n\n{line}" for line in lines)


def _origin(artefact: ModelArtefact, exported: Exported) -> Iterable[tuple[str, str]]:
    manifest = artefact.trained.manifest
    yield "base", exported.base.name + ("" if os.path.isdir(exported.base.path) else f", {exported.base.revision}")
    yield "stage", f"`{manifest.stage}`, kind `{manifest.kind}`"
    yield "key", f"`{manifest.key}`"
    yield "sha256 of its outputs", f"`{manifest.sha256}`"
    for name, entry in sorted(manifest.inputs.items()):
        yield f"input `{name}`", f"key `{entry['key'][:12]}`, sha256 `{entry['sha256']}`"
    yield "seed", str(manifest.seed)
    yield "made", manifest.created
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    yield "exported by", f"prefopt {__version__}, {'merged' if exported.merged else 'as it is'}"
    where = f"on {exported.rows} rows, in {exported.dtype.removeprefix('torch.')}"
    yield "logits", f"those of the stage, within {exported.gap:.1e} of the largest {where}"


def _options(artefact: ModelArtefact) -> str:
    """Of the stage and of the model, as its key holds them: without this machine's folders."""
    file = artefact.trained.directory / KEY_FILE
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("spec"), dict):
        raise IntegrityError(f"{file} is not what a key is made of")
    said = {artefact.trained.stage: _said(content["spec"]), "model": _said(content.get("model") or {})}
    return yaml.safe_dump(json.loads(json.dumps(said)), sort_keys=True)


def _said(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value not in (None, {}, [])}


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
