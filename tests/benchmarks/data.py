"""How fast pairs are prepared and in how much memory: the table of docs/benchmarks.md, as Markdown.

usage: python tests/benchmarks/data.py [ROWS ...]

Generates 10,000, 100,000 and 1,000,000 pairs (or as many as are given), once as conversations and once as plain texts,
of about 150 tokens each, and prepares each file as a dpo stage does: reading, finding the format, leaving out
duplicates, splitting by prompt, rendering, tokenising, writing, and opening what was written. Every measurement is a
process of its own on one core; time is the processor's, memory the peak above what the process took after its imports.
`cached` is the same again, with what the first one left on the disk. Nothing is trained but a tokenizer.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = (10_000, 100_000, 1_000_000)
KINDS = ("conversations", "plain texts")
WORDS, LETTERS = 4000, "eeetaaoinshrdlucmfwypvbgk"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def sentences(seed: int) -> Iterator[str]:
    """Sentences of 12 words; as in a language, the word of rank r comes with a frequency of about 1 / r."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(LETTERS, k=rng.choice((2, 3, 4, 4, 5, 6, 7, 8)))) for _ in range(WORDS)]
    weights = [1 / (rank + 3) for rank in range(WORDS)]
    while True:
        drawn = rng.choices(words, weights, k=12_000)
        for start in range(0, len(drawn), 12):
            text = " ".join(drawn[start : start + 12])
            yield f"{text[0].upper()}{text[1:]}."


def write_pairs(kind: str, count: int, path: Path) -> None:
    """Pairs of three questions' length and two answers."""
    said = sentences(1)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            first, second, third, *answers = (next(said) for _ in range(9))
            chosen, rejected = " ".join(answers[:3]), " ".join(answers[3:])
            if kind == "plain texts":
                row: dict[str, object] = {"prompt": f"{first} {second} {third}", "chosen": chosen, "rejected": rejected}
            else:
                turns = [
                    {"role": role, "content": text} for role, text in zip(ROLES, (first, second, third), strict=True)
                ]
                row = {"prompt": turns, **{name: [{"role": "assistant", "content": text}] for name, text in
                                           (("chosen", chosen), ("rejected", rejected))}}  # fmt: skip
            file.write(json.dumps(row) + "\n")


ROLES = ("user", "assistant", "user")


def write_base(folder: Path) -> None:
    """A tokenizer and a model's configuration; no stage is trained, so it needs no weights."""
    from transformers import LlamaConfig

    from prefopt.trainers.pretrain import train_tokenizer

    said = sentences(1)
    tokenizer = train_tokenizer((next(said) for _ in range(20_000)), 8000)
    tokenizer.chat_template = None  # the `transcript` template then
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(folder)


def peak_bytes() -> int:
    """Most memory that this process had resident."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(folder: Path, rows: Path) -> None:
    """In a process of its own: prepares rows, and prints seconds of the processor, bytes, pairs and tokens."""
    from prefopt.pipeline.adapters import Rows
    from prefopt.pipeline.base_model import open_base
    from prefopt.pipeline.context import StageContext, StopFlag
    from prefopt.pipeline.pair_rows import PAIR_COLUMNS, pair_rows
    from prefopt.recipe.schema import DPOSpec, Recipe

    model = {"model_name_or_path": str(folder / "base"), "dtype": "float32"}
    recipe = Recipe.model_validate(
        {
            "name": "data",
            "model": model,
            "data": {"pairs": {"path": str(rows)}},
            "stages": {"dpo": {"kind": "dpo", "data": "pairs"}},
        }
    )
    context = StageContext(
        recipe, "dpo", "dpo", "0" * 64, folder, 17, "data", folder / "cache", folder, False, False,
        lambda step, total, metrics: None, lambda line: None, StopFlag(),
    )  # fmt: skip
    base = open_base({}, context)
    before, start = peak_bytes(), time.process_time()
    spec = recipe.stages["dpo"]
    assert isinstance(spec, DPOSpec)
    found: Rows = pair_rows(spec, {}, context, base, PAIR_COLUMNS)
    seconds, taken = time.process_time() - start, peak_bytes() - before
    pairs = len(found.train) + len(found.evaluation)
    first = [len(row[name]) for row in found.train[:1000] for name in PAIR_COLUMNS.ids]
    print(json.dumps({"seconds": seconds, "bytes": taken, "pairs": pairs, "tokens": sum(first) / min(1000, pairs)}))


def measured(folder: Path, rows: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(folder), str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    print("| pairs | tokens per pair | pairs a second | memory above imports | cached: seconds | cached: memory |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(folder / "base")
        for kind in KINDS:
            for count in [int(word) for word in sys.argv[1:]] or ROWS:
                rows = folder / "pairs.jsonl"
                write_pairs(kind, count, rows)
                cold, cached = measured(folder, rows), measured(folder, rows)
                cells = [f"{count:,} {kind}", f"{cold['tokens']:.0f}", f"{count / cold['seconds']:,.0f}"]
                cells += [
                    f"{cold['bytes'] / 2**20:.0f} MiB",
                    f"{cached['seconds']:.2f}",
                    f"{cached['bytes'] / 2**20:.0f} MiB",
                ]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
