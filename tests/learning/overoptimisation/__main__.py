"""Train and measure how far reward models of about 100, 500 and 2,000 labels can be trusted, and write it down.

usage: python -m tests.learning.overoptimisation [--out runs/overoptimisation] [--seeds 3] [--no-page]

Runs overoptimisation.yaml with `prefopt run --seeds N`, which goes on where it was stopped, and writes the section
"Over-optimisation" of docs/benchmarks.md with its plot.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.learning.overoptimisation import page

ROOT = Path(__file__).resolve().parents[3]
RECIPE = Path(__file__).with_name("overoptimisation.yaml")
QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "overoptimisation")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks.md as it is")
    a = parser.parse_args()
    words = [sys.executable, "-m", "prefopt", "run", str(RECIPE), "--out", str(a.out), "--seeds", str(a.seeds)]
    ended = subprocess.run(words, cwd=ROOT, env={**os.environ, **QUIET}, check=False).returncode
    if ended:
        return ended
    if not a.no_page:
        page.write(a.out, ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
