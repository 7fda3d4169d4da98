"""The picture of a ppo stage's health on its page: the report's plots, side by side.

usage: python tests/browser/ppo_picture.py RUN_DIR OUT.png

RUN_DIR has been reported (`prefopt report RUN_DIR`) and has a stage called ppo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

PLOTS = (
    *("score", "reward", "kl", "entropy", "length", "endings"),
    *("repetition", "update", "approx-kl", "value", "grad-norm", "mismatch"),
)
COLUMNS, WIDTH, GAP, COLOURS = 3, 1100, 12, 64


def montage(folder: Path) -> Image.Image:
    """The plots in rows of equal height."""
    plots = [Image.open(folder / f"ppo-{name}.png").convert("RGB") for name in PLOTS]
    width = (WIDTH - (COLUMNS - 1) * GAP) // COLUMNS
    scaled = [plot.resize((width, round(plot.height * width / plot.width)), Image.Resampling.LANCZOS) for plot in plots]
    height = max(plot.height for plot in scaled)
    rows = -(-len(scaled) // COLUMNS)
    page = Image.new("RGB", (WIDTH, rows * height + (rows - 1) * GAP), "white")
    for number, plot in enumerate(scaled):
        row, column = divmod(number, COLUMNS)
        page.paste(plot, (column * (width + GAP), row * (height + GAP)))
    return page


def main(run: str, out: str) -> None:
    montage(Path(run) / "report" / "plots").quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(str(__doc__))
    main(*sys.argv[1:])
