"""What enters a stage's key beside its options: the revision of its code, and whether it reads the base model.

A revision is raised by the change that alters the numbers of a kind; finished stages of that kind then run again. The
table is here, and not beside the code, because keys are computed where torch is not imported.
"""

from __future__ import annotations

REVISIONS: dict[str, int] = {
    "pretrain": 2,
    "sft": 3,
    "collect": 2,
    "reward": 4,
    "dpo": 5,
    "kto": 2,
    "ppo": 6,
    "grpo": 2,
    "rloo": 2,
    "distill": 1,
    "evaluate": 5,
}

USES_MODEL: frozenset[str] = frozenset(REVISIONS) - {"pretrain"}

# Only the first two numbers count: a patch release is not supposed to change what is computed.
KEYED_LIBRARIES: tuple[str, ...] = ("torch", "transformers", "trl", "peft", "tokenizers")
