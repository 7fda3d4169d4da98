"""Pairs of the embedded world in two groups of unequal size: ordinary ones, and those that are about codes.

In the rare group the customer asks for the code, and the answer that does not tell it is preferred; the common group
has neither such customers nor such answers, and is labelled by people who follow gold. Nothing that the common group
teaches says that codes are bad.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from prefopt.data.toy import world
from prefopt.data.toy.reading import read_prompt
from prefopt.records import PreferencePair, conversation

SEED = 5
DRAWN = 16_000
COMMON, RARE = 3_800, 800
"""Rows of each group; of them the recipe trains on 1,900 and 100, and holds the others out."""


def groups() -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The first `COMMON` ordinary pairs and the first `RARE` pairs about codes."""
    common, rare = [], []
    for pair in world.preferences(DRAWN, SEED):
        asked = "code" in read_prompt(pair.prompt).intents
        told = [bool(world.violations(text)) for text in (pair.chosen, pair.rejected)]
        if asked and sum(told) == 1:
            rare.append(PreferencePair(pair.prompt, *_first_without(pair, told[0]), id=pair.id))
        elif not asked and not any(told):
            common.append(pair)
    return common[:COMMON], rare[:RARE]


def _first_without(pair: PreferencePair, chosen_tells: bool) -> tuple[str, str]:
    return (pair.rejected, pair.chosen) if chosen_tells else (pair.chosen, pair.rejected)


def write(folder: Path) -> None:
    """Write shop.jsonl and codes.jsonl; nothing where they are already."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "codes.jsonl").is_file():
        common, rare = groups()
        _write(folder / "shop.jsonl", common)
        _write(folder / "codes.jsonl", rare)


def _write(path: Path, pairs: Iterable[PreferencePair]) -> None:
    rows = [{"prompt": conversation(p.prompt), "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
