"""Charts: matplotlib figures of the width of a paper's column, as SVG in the page's colours and as PDF.

Functions that build figures are decorated with `styled`. They do not use pyplot, which would need a screen.
"""

import logging
import re
from collections.abc import Sequence
from io import BytesIO, StringIO
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from polyp.report.palette import PALETTE

TEXT, FAINT, LINE, BACK = (PALETTE[name][0] for name in ("text", "faint", "line", "back"))
SERIES = *(PALETTE[name][0] for name in ("blue", "orange", "green", "pink", "ochre")), TEXT
"""The colours of curves and points. Figures are drawn in light colours."""

SIZE = (3.5, 2.6)  # of a chart in inches, for a column of a two-column paper
LABEL_HEIGHT = 0.065  # of a label at the right of the axes, as a share of their height

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "text.color": TEXT,
    "text.parse_math": False,  # names may contain $
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT),
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

styled = rc_context(STYLE)  # decorates functions that build or write figures


class Chart(NamedTuple):
    """A chart of a page."""

    name: str  # of the PDF file
    figure: Figure  # built by a `styled` function
    caption: str  # also for screen readers


def make_axes(x: str, y: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure with labelled axes."""
    figure = Figure(size)
    return figure, figure.add_subplot(xlabel=x, ylabel=y)


def use_log(axes: Axes, name: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def label_rows(axes: Axes, names: Sequence[str], values: Sequence[str] = (), colour: str = TEXT) -> None:
    """Label rows at the heights 0, 1, ..., from top to bottom: names on the left, values on the right."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    for index, value in enumerate(values):
        axes.annotate(value, (1.02, index), xycoords=("axes fraction", "data"), va="center", color=colour)


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write labels (height in data units, text, colour) at the right of the axes, whose limits must be final.

    Labels that would overlap are moved apart.
    """
    from scipy.optimize import isotonic_regression

    if not labels:
        return
    low, high = axes.get_ylim()
    labels = sorted(labels)
    offsets = LABEL_HEIGHT * np.arange(len(labels))
    heights = (np.array([height for height, *_ in labels]) - low) / (high - low)
    heights = isotonic_regression(heights - offsets).x + offsets
    heights -= max(0, heights[-1] - 1)
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        axes.annotate(text, (1.02, height), xycoords="axes fraction", va="center", color=colour)


@styled
def render_svg(figure: Figure) -> str:
    """An <svg> element that uses the page's colour variables."""
    stream = StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    names = {light: name for name, (light, _) in PALETTE.items()}

    def replace_colour(match: re.Match[str]) -> str:
        name = names.get(match[2])
        return f"{match[1]}: var(--{name})" if name else match[0]

    svg = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", replace_colour, stream.getvalue())
    # The page has its own style, ids would repeat from chart to chart, and links lead to the same page.
    svg = re.sub(r'<style.*?</style>|(?<=<g) id="[^"]*"| target="_blank"', "", svg, flags=re.DOTALL)
    return re.sub(r'.*?<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1, flags=re.DOTALL)


@styled
def render_file(figure: Figure, kind: Literal["pdf", "png"]) -> bytes:
    """The content of a PDF or PNG file, at the figure's own size."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs each font at level INFO
    stream = BytesIO()
    figure.savefig(stream, format=kind, dpi=144)
    return stream.getvalue()
