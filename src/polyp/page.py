"""Pages for people: HTML files that hold all they show, so that they open offline and can be sent to somebody.

Tables, pictures and charts are added in the order in which they are read. Charts are matplotlib figures, made without
pyplot, which would look for a screen.
"""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from matplotlib.figure import Figure

from polyp import files

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --faint: #59636e; --line: #d4d9df; --back: #fff; --box: #f4f6f8;
        --warn: #9a5b00; --mark: #0b6bcb }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --faint: #9aa4af; --line: #3a424c; --back: #14171b; --box: #1d2127; --warn: #f0b35a;
          --mark: #6db3ff } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 76rem;
       margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: .5rem 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem } p { margin: .4rem 0; max-width: 60rem } .faint { color: var(--faint) }
nav a { margin-right: 1rem } a { color: var(--mark) }
.warning { border-left: 4px solid var(--warn); background: var(--box); padding: .4rem .8rem; margin: .5rem 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0 }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
         font-variant-numeric: tabular-nums; white-space: nowrap }
th { color: var(--faint); font-weight: 600 } th.text, td.text { text-align: left } td.text { white-space: normal }
td.long { min-width: 16rem }
figure { margin: .8rem 0 } figure img { max-width: 100%; height: auto } figcaption { font-size: .9rem }
figure.chart img { background: #fff; max-width: min(46rem, 100%) }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1rem }
.gallery figure, .charts figure { margin: 0 } .gallery img, .charts img { width: 100% }
.small { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .5rem }
.small figcaption { font-size: .8rem; line-height: 1.3 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem;
          align-items: start; margin: .8rem 0 }
.charts figure:only-child { max-width: 36rem }
"""


class Page:
    """One HTML file in the making.

    Args:
        title: the heading.
        lead: a sentence or two below it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self.parts: list[str] = []
        self.sections: list[str] = []

    def section(self, heading: str, intro: str = "") -> None:
        """Begin a section, which the line of links at the top leads to."""
        self.sections.append(heading)
        self.parts.append(f'<h2 id="s{len(self.sections)}">{html.escape(heading)}</h2>')
        self.text(intro)

    def heading(self, text: str) -> None:
        """A smaller heading inside a section."""
        self.parts.append(f"<h3>{html.escape(text)}</h3>")

    def text(self, text: str, kind: Literal["", "faint", "warning"] = "") -> None:
        """A paragraph; nothing if it is empty."""
        if text:
            self.parts.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
        """A table; numbers are written as given, so format them first.

        Args:
            rows: a cell for each column; one that is missing or None stays blank.
            columns: their order; by default that of the first row.
        """
        if not rows:
            return
        columns = columns or list(rows[0])
        kinds = [_kind([str(row.get(name, "")) for row in rows]) for name in columns]
        head = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{k}>{_cell(row.get(n))}</td>" for n, k in zip(columns, kinds, strict=True)) + "</tr>"
            for row in rows
        )
        self.parts.append(f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')

    def gallery(self, pictures: Sequence[tuple[np.ndarray, str]], small: bool = False) -> None:
        """Pictures with captions side by side, as many as the window is wide; twice as many if they are small."""
        if pictures:
            figures = "".join(_figure(_jpeg(picture), caption, "") for picture, caption in pictures)
            self.parts.append(f'<div class="gallery{" small" * small}">{figures}</div>')

    def chart(self, figure: Figure, caption: str, file: Path | None = None) -> None:
        """A matplotlib figure with a line below it, which is also its description for those who cannot see it.

        Args:
            figure: the chart.
            caption: the line.
            file: where to write it as a PNG as well.
        """
        self.parts.append(_chart(figure, caption, file))

    def charts(self, figures: Sequence[tuple[Figure, str, Path | None]]) -> None:
        """Several charts, as of `chart`, side by side where the window is wide enough."""
        self.parts.append(f'<div class="charts">{"".join(_chart(*figure) for figure in figures)}</div>')

    def write(self, file: Path) -> None:
        """Write the file, in one piece.

        Raises:
            WriteError: it cannot be written.
        """
        links = "".join(f'<a href="#s{n}">{html.escape(name)}</a>' for n, name in enumerate(self.sections, 1))
        text = (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
            f"<h1>{html.escape(self.title)}</h1><p>{html.escape(self.lead)}</p><nav>{links}</nav>"
            f"{os.linesep.join(self.parts)}</body></html>\n"
        )
        files.write_text(file, text)


def _cell(value: Any) -> str:
    return "" if value is None else html.escape(str(value))


def _kind(cells: Sequence[str]) -> str:
    """How a column is set: numbers to the right, texts to the left, long ones in several lines."""
    if any(map(_is_number, cells)):
        return ""
    return ' class="text long"' if max(map(len, cells)) > 40 else ' class="text"'


def _is_number(value: Any) -> bool:
    text = str(value).strip().lstrip("+-\N{MINUS SIGN}<(")
    return len(text) < 40 and (text[:1].isdigit() or text[:1] == ".")


def _jpeg(picture: np.ndarray) -> str:
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return _source("jpeg", encoded.tobytes())


def _source(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _chart(figure: Figure, caption: str, file: Path | None) -> str:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=144)
    if file is not None:
        files.write_bytes(file, stream.getvalue())
    return _figure(_source("png", stream.getvalue()), caption, "chart")


def _figure(source: str, caption: str, kind: str) -> str:
    text = html.escape(caption)
    return f'<figure class="{kind}"><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'
