"""HTML pages: files that hold everything they show, so that they open offline and can be sent to somebody.

Tables, pictures and charts are added in the order in which they are read. Charts are matplotlib figures, made
without pyplot, which would look for a screen.
"""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from polyp import files
from polyp.report.tables import Table


class Page:
    """One HTML file in the making; its look is templates/page.html and page.css.

    Args:
        title: the heading.
        lead: a sentence or two below it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self.parts: list[tuple[str, Any]] = []
        """Of the page's content, each with its kind, by which the template sets it."""
        self.sections: list[str] = []

    def section(self, heading: str, intro: str = "") -> None:
        """Begin a section, which the line of links at the top leads to."""
        self.sections.append(heading)
        self.parts.append(("section", {"number": len(self.sections), "heading": heading}))
        self.text(intro)

    def heading(self, text: str) -> None:
        """Add a smaller heading inside a section."""
        self.parts.append(("heading", text))

    def text(self, text: str, style: Literal["", "faint", "warning"] = "") -> None:
        """Add a paragraph; nothing if it is empty."""
        if text:
            self.parts.append(("text", {"text": text, "style": style}))

    def include(self, template: str) -> None:
        """Add a file of report/templates, which holds text that no value changes."""
        self.parts.append(("include", template))

    def table(self, table: Table | Sequence[Mapping[str, Any]]) -> None:
        """Add a table; nothing if it has no rows.

        Args:
            table: a `Table`, or rows whose values are shown as they are, under the keys of the first row.
        """
        table = table if isinstance(table, Table) else Table(table)
        if table.rows:
            self.parts.append(("table", table))

    def gallery(self, pictures: Sequence[tuple[np.ndarray, str]], small: bool = False) -> None:
        """Add pictures with captions side by side, as many as fit into the window's width.

        Args:
            pictures: (H, W, 3) uint8 RGB, each with its caption.
            small: half the width, so that twice as many fit.
        """
        if pictures:
            figures = [(_encode_jpeg(picture), caption) for picture, caption in pictures]
            self.parts.append(("gallery", {"figures": figures, "small": small}))

    def chart(self, figure: Figure, caption: str, file: Path | None = None) -> None:
        """Add a matplotlib figure with a caption, which is also its description for those who cannot see it.

        Args:
            figure: the chart.
            caption: the line below it.
            file: where to write it as a PNG as well.
        """
        self.parts.append(("chart", (_encode_png(figure, file), caption)))

    def charts(self, figures: Sequence[tuple[Figure, str, Path | None]]) -> None:
        """Add several charts, as of `chart`, side by side where the window is wide enough."""
        charts = [(_encode_png(figure, file), caption) for figure, caption, file in figures]
        self.parts.append(("charts", charts))

    def write(self, file: Path) -> None:
        """Write the file atomically.

        Raises:
            WriteError: it cannot be written.
        """
        templates = PackageLoader("polyp.report")
        environment = Environment(loader=templates, undefined=StrictUndefined, autoescape=True)
        files.write_text(file, environment.get_template("page.html").render(vars(self)))


def _encode_jpeg(picture: np.ndarray) -> str:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return _data_url("jpeg", cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())


def _encode_png(figure: Figure, file: Path | None) -> str:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=144)
    if file is not None:
        files.write_bytes(file, stream.getvalue())
    return _data_url("png", stream.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
