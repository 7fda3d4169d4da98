"""One plot: from what paints its axes to SVG that takes the page's colours, and to PNG.

A figure is drawn once, in the colours of the light theme. In the SVG each of them becomes a CSS variable, so that the
same drawing is readable on dark ground and on paper.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#20242c", "#dfe2e8"
SERIES = ("#2a5db0", "#c4571b", "#1f7a5c", "#7a4fb0", "#a8324a", "#5b6472")
_VARIABLES = {INK: "var(--ink)", GRID: "var(--line)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES, start=1)}

SIZE = (5.4, 2.9)
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefopt",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """One drawing.

    Attributes:
        name: Of the PNG file, without suffix; unique in the report.
        title: One line above it.
        caption: How to read it, for someone who sees such a plot for the first time.
        svg: The drawing as an inline element.
        png: The same as a file.
        evidence: Whether it belongs to what an evaluation found, not to the stage's own card.
        group: Heading that it stands under on the card; empty for none.
    """

    name: str
    stage: str
    title: str
    caption: str
    svg: str
    png: bytes
    evidence: bool = False
    group: str = ""


@dataclass(frozen=True)
class Sketch:
    """A plot before it is drawn; attributes as those of `Plot`.

    Attributes:
        paint: Puts everything on the axes.
        size: Inches; the page shows all plots at the same width.
        description: What it shows in words, for screen readers; empty where a table says it.
    """

    name: str
    stage: str
    title: str
    caption: str
    paint: Callable[[Axes], None]
    size: tuple[float, float] = SIZE
    evidence: bool = False
    group: str = ""
    description: str = ""


def plot_of(sketch: Sketch, index: int) -> Plot:
    """Draws a plot.

    Args:
        sketch: What to draw.
        index: Of the plot among those of the page.
    """
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()  # not what the user's matplotlibrc says: the same run gives the same bytes everywhere
        rcParams.update(_RC)
        # No pyplot: it keeps figures alive and chooses a backend by looking at the screen.
        figure = Figure(figsize=sketch.size)
        FigureCanvasAgg(figure)
        sketch.paint(figure.add_subplot())
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    return Plot(
        name=f"{sketch.stage}-{sketch.name}",
        stage=sketch.stage,
        title=sketch.title,
        caption=sketch.caption,
        svg=inline_svg(svg.getvalue(), f"plot{index}", f"{sketch.stage}: {sketch.title}", sketch.description),
        png=png.getvalue(),
        evidence=sketch.evidence,
        group=sketch.group,
    )


def inline_svg(document: str, prefix: str, title: str, description: str = "") -> str:
    """An SVG document as an element of a page.

    Args:
        document: What matplotlib wrote.
        prefix: Put before every id, so that several drawings share a page.
        title: Plain text that says what is drawn, for screen readers.
        description: Plain text that says what there is to see; empty for none.
    """
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", element)
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', element, count=1)
    # The page's own font; matplotlib's shorthand would also name fonts that few machines have.
    element = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    described = f"<desc>{html.escape(description, quote=False)}</desc>" if description else ""
    said = f"<title>{html.escape(title, quote=False)}</title>{described}"
    return element.replace('role="img">', f'role="img">{said}', 1)


def legend(axes: Any) -> None:
    """One legend above the axes, for everything on them that has a label."""
    figure: Figure = axes.figure
    figure.legend(loc="outside upper left", ncols=4, handlelength=2.0, columnspacing=2.0, borderaxespad=0.2)


def plain(name: str) -> str:
    """A name that the plot's font can draw; a leading underscore would hide it from the legend."""
    text = name.encode("ascii", "backslashreplace").decode("ascii")[:40]
    return f" {text}" if text.startswith("_") else text or "(no name)"
