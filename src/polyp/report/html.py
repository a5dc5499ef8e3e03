"""HTML pages: single files that contain all they show, so that they open offline and can be sent by mail.

Pages and their charts follow the light or dark colours of the screen. A click enlarges a picture, and each
chart can be saved as PDF.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from polyp import files
from polyp.report.palette import PALETTE
from polyp.report.pictures import Colour
from polyp.report.tables import Table

if TYPE_CHECKING:
    from polyp.report.charts import Chart


class Number(NamedTuple):
    """A number in large type."""

    name: str
    value: str
    detail: str = ""  # a line below the value, such as its interval
    meaning: str = ""  # the definition, shown on hover


class Page:
    """An HTML page, built from top to bottom; templates/page.html and page.css define its look.

    Args:
        title: the heading.
        lead: the result in a sentence or two, below the heading.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self.parts: list[tuple[str, Any]] = []
        """The content in order: the kind of each part, such as "table", and its data for the template."""
        self.sections: list[str] = []

    def section(self, heading: str, intro: str = "") -> None:
        """Begin a section, with a link to it at the top of the page."""
        self.sections.append(heading)
        self.parts.append(("section", {"number": len(self.sections), "heading": heading}))
        self.text(intro)

    def heading(self, text: str, anchor: str = "") -> None:
        """Add a smaller heading within a section; #ANCHOR links to it."""
        self.parts.append(("heading", {"text": text, "anchor": anchor}))

    def text(self, text: str, style: Literal["", "faint", "warning"] = "") -> None:
        """Add a paragraph; nothing if it is empty."""
        if text:
            self.parts.append(("text", {"text": text, "style": style}))

    def numbers(self, numbers: Sequence[Number]) -> None:
        """Add numbers in large type, side by side."""
        self.parts.append(("numbers", numbers))

    def include(self, template: str) -> None:
        """Add a file of report/templates that has no variables."""
        self.parts.append(("include", template))

    def table(self, table: Table | Sequence[Mapping[str, Any]]) -> None:
        """Add a `Table`, or rows as a table of the first row's keys; nothing if there are no rows."""
        table = table if isinstance(table, Table) else Table(table)
        if table.rows:
            self.parts.append(("table", table))

    def gallery(
        self,
        pictures: Sequence[tuple[np.ndarray, str]],
        legend: Mapping[str, Colour] | None = None,
        width: Literal["small", "", "wide"] = "",
    ) -> None:
        """Add pictures (H, W, 3) uint8 RGB with captions, as many in a row as fit into the window.

        The legend explains the colours of outlines.
        """
        if pictures:
            figures = [(_encode_jpeg(picture), caption) for picture, caption in pictures]
            self.parts.append(("gallery", {"figures": figures, "legend": legend, "width": width}))

    def charts(self, charts: "Sequence[Chart]") -> None:
        """Add charts, side by side if the window is wide enough."""
        from polyp.report.charts import (  # matplotlib, which pages without charts spare
            render_file,
            render_svg,
        )

        parts = [
            {
                "name": chart.name,
                "caption": chart.caption,
                "svg": render_svg(chart.figure),
                "pdf": _data_url("application/pdf", render_file(chart.figure, "pdf")),
            }
            for chart in charts
        ]
        if parts:
            self.parts.append(("charts", parts))

    def write(self, file: Path) -> None:
        """Write the file atomically.

        Raises:
            WriteError: it cannot be written.
        """
        templates = PackageLoader("polyp.report")
        environment = Environment(loader=templates, undefined=StrictUndefined, autoescape=True)
        files.write_text(file, environment.get_template("page.html").render(vars(self), palette=PALETTE))


def _encode_jpeg(picture: np.ndarray) -> str:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return _data_url("image/jpeg", cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
