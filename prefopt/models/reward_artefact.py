"""A trained reward model on disk: one adapter folder or several, and `reward.json`, which says what they give."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from prefopt.errors import IntegrityError
from prefopt.models.heads import RewardEnsemble, ScoreHead, hang_reward
from prefopt.models.roles import REWARD
from prefopt.store.files import read_json, write_json

DESCRIPTION = "reward.json"


@dataclass(frozen=True)
class RewardArtefact:
    """How the outputs of the heads become a score.

    The outputs of all heads side by side are [members, axes], flattened.

    Attributes:
        adapters: Folders of the adapters, relative to the artefact; the first can be opened alone.
        axes: What each member scores; the first is the score, the others come with it by name.
        temperature: What scores were divided by, so that σ(difference) is a calibrated probability; the heads on disk
            have it in them. None where nothing was calibrated.
        origin: Added to the first axis: what a regression head leaves to a constant.
        offsets: For each member how far its scores lie above the ensemble's on average, on held-out answers. Members
            know differences only, so their zeros are arbitrary and no disagreement. Empty: all 0.
    """

    adapters: tuple[str, ...] = ("adapter",)
    axes: tuple[str, ...] = (REWARD,)
    temperature: float | None = None
    origin: float = 0.0
    offsets: tuple[float, ...] = ()


def write_artefact(directory: Path, artefact: RewardArtefact) -> None:
    """Write `reward.json`."""
    write_json(directory / DESCRIPTION, asdict(artefact))


def read_artefact(directory: Path) -> RewardArtefact:
    """Read `reward.json`.

    Raises:
        IntegrityError: When it is not there, or not what `write_artefact` wrote.
    """
    found = read_json(directory / DESCRIPTION)
    if not isinstance(found, dict) or set(found) != {field.name for field in fields(RewardArtefact)}:
        raise IntegrityError(f"{directory / DESCRIPTION} does not describe a reward model")
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in found.items()}
    return RewardArtefact(**values)


def open_reward(
    base: PreTrainedModel | PeftModel, directory: Path, name: str = REWARD
) -> tuple[RewardEnsemble, RewardArtefact]:
    """Hang all members of a reward model on a base, frozen.

    Args:
        base: The frozen base; where it has other roles' adapters, these stay active and trained as they are.
        directory: The artefact.
        name: Of the adapters, where the base has other roles': a reward and a judge may be on the same one.

    Raises:
        IntegrityError: When a folder does not hold what `reward.json` says.
    """
    artefact = read_artefact(directory)
    heads: dict[str, ScoreHead] = {}
    alone = not isinstance(base, PeftModel)
    for number, folder in enumerate(artefact.adapters):
        member = f"{name.replace('.', '-')}_{number}"  # a module's name has no dots
        base, heads[member] = hang_reward(base, directory / folder, member)
    assert isinstance(base, PeftModel)
    outputs = sum(head.out_features for head in heads.values())
    if outputs % len(artefact.axes) or (artefact.offsets and len(artefact.offsets) != outputs // len(artefact.axes)):
        raise IntegrityError(f"{directory}: {outputs} outputs do not fit {DESCRIPTION}")
    if alone:
        base.requires_grad_(False)  # beside another adapter PEFT makes the active one trainable
    return RewardEnsemble(base.eval(), heads), artefact
