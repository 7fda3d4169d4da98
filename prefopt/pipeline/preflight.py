"""What can be known about the disk before any work begins."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

from prefopt.errors import EnvironmentFault
from prefopt.recipe.schema import AnyStage, ModelSpec, OptimisationSpec, PPOSpec, PretrainSpec
from prefopt.store.files import disk_faults, free_bytes, make_folder

# Logs, metrics, samples and a small adapter with its optimizer.
STAGE_BYTES = 16 * 2**20
# A LoRA adapter has about this share of its base's weights; Adam keeps two more numbers for each of its weights.
ADAPTER_SHARE = 0.01
BYTES_PER_TRAINED_WEIGHT = 4 * 3


def needed_bytes(stages: Iterable[AnyStage], model: ModelSpec) -> int:
    """A low estimate of what stages will write; running out later is still handled, only later.

    Args:
        stages: The stages that are to run.
        model: The recipe's base model; its size is known when it is a local folder.
    """
    base = Path(model.model_name_or_path)
    files = base.glob("*.safetensors") if base.is_absolute() and base.is_dir() else ()
    base_bytes = sum(path.stat().st_size for path in files)
    return sum(STAGE_BYTES + int(_checkpoint_bytes(stage, base_bytes)) for stage in stages)


def _checkpoint_bytes(stage: AnyStage, base_bytes: int) -> float:
    if not isinstance(stage, OptimisationSpec):
        return 0.0
    copies = stage.save_total_limit + 1
    if isinstance(stage, PretrainSpec):
        per_layer = stage.hidden_size * (4 * stage.hidden_size + 3 * stage.intermediate_size)
        weights = 2 * stage.vocab_size * stage.hidden_size + stage.num_hidden_layers * per_layer
        return weights * BYTES_PER_TRAINED_WEIGHT * copies
    adapters = 2 if isinstance(stage, PPOSpec) and stage.value == "adapter" else 1
    return base_bytes * ADAPTER_SHARE * BYTES_PER_TRAINED_WEIGHT / 2 * adapters * copies


def require_room(root: Path, needed: int) -> None:
    """Checks that a folder can be written and has room.

    Args:
        root: The run folder; it is made.
        needed: Bytes.

    Raises:
        EnvironmentFault: Naming the path and, when the disk is too full, needed and free bytes.
    """
    make_folder(root)
    probe = root / f".probe.{secrets.token_hex(6)}.tmp"
    with disk_faults(root):
        try:
            probe.write_bytes(b"\0")
        finally:
            probe.unlink(missing_ok=True)
    free = free_bytes(root)
    if free < needed:
        raise EnvironmentFault(
            f"{root} has too little room: this run needs at least {needed} bytes, {free} bytes are free",
            "free some space, or choose another folder with --out",
        )
