"""What enters a stage's key beside its options: the revision of its code, and whether it reads the base model.

A revision is raised by the change that alters the numbers of a kind; finished stages of that kind then run again. The
table is here, and not beside the code, because keys are computed where torch is not imported.
"""

from __future__ import annotations

REVISIONS: dict[str, int] = {
    "pretrain": 2,
    "sft": 3,
    "collect": 1,
    "reward": 4,
    "dpo": 5,
    "kto": 1,
    "ppo": 5,
    "grpo": 1,
    "rloo": 1,
    "distill": 1,
    "evaluate": 4,
}

USES_MODEL: frozenset[str] = frozenset(REVISIONS) - {"pretrain"}

# Only the first two numbers count: a patch release is not supposed to change what is computed.
KEYED_LIBRARIES: tuple[str, ...] = ("torch", "transformers", "trl", "peft", "tokenizers")
