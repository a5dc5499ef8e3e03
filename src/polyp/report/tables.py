"""Tables: rows of values, written for people (terminal, HTML, Markdown) and for programs (CSV).

In CSV, text that a spreadsheet would take for a formula is escaped when written, and restored when read.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polyp import terminal
from polyp.report.markdown import Markdown, escape_markdown

LONG_TEXT = 40  # characters; longer cells are broken into lines on a page
LONG_SETTING = 24  # characters; the terminal shows numbers for longer settings, explained below the table
NUMBER = re.compile(r"[\s+\-\N{MINUS SIGN}<(]*[\d.]")  # the beginning of a cell that holds a number


@dataclass(frozen=True)
class Column:
    """A column of a table, as people see it."""

    name: str  # the key of its values in the rows
    label: str | None = None  # the heading; by default the name
    format: str | Callable[[Mapping[str, Any]], str] = ""  # such as ".3f", or a function of the whole row
    align: Literal["left", "right"] | None = None  # by default, "right" for numbers
    hint: str = ""  # shown on a page on hover
    optional: bool = False  # hidden if the terminal is too narrow, the last optional column first

    def format_cell(self, row: Mapping[str, Any]) -> str:
        """The row's cell as people see it, blank for None and missing values; `Markdown` stays `Markdown`."""
        if callable(self.format):
            return self.format(row)
        value = row.get(self.name)
        if isinstance(value, Markdown):
            return value
        return "" if value is None else format(value, self.format)


class Table:
    """Rows of values: all of them for programs (CSV, pandas), and columns for people.

    The columns are those that people see, in this order; by default every key of the first row.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] = ()) -> None:
        self.rows = rows
        self.columns = columns = columns or [Column(name) for name in (rows[0] if rows else ())]
        self.labels = [column.name if column.label is None else column.label for column in columns]
        self.hints = [column.hint for column in columns]
        self.cells = [[column.format_cell(row) for column in columns] for row in rows]
        self.styles = [
            _style(column.align, [cells[index] for cells in self.cells])
            for index, column in enumerate(columns)
        ]
        """The HTML class of each column: "" for numbers, "text" or "text long" for text."""

    def to_csv(self) -> str:
        """The text of a CSV file with every value of the rows, unrounded."""
        return to_csv(self.rows, list(dict.fromkeys(name for row in self.rows for name in row)))

    def to_markdown(self) -> Markdown:
        """A Markdown table in which every cell is escaped."""
        lines = [[escape_markdown(cell) for cell in line] for line in (self.labels, *self.cells)]
        lines.insert(1, [Markdown("---")] * len(self.labels))
        return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def print(
        self,
        bold: Callable[[Mapping[str, Any]], bool] = lambda row: False,
        fit: bool = True,
        option: str = "",
    ) -> None:
        """Print the table to the terminal, with as many optional columns as fit.

        Args:
            bold: whether a row is bold.
            fit: False prints all columns.
            option: the command line option that shows hidden columns.
        """
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as Grid

        console, hidden = terminal.console(), list[str]()
        columns = dict(enumerate(map(list, zip(self.labels, *self.cells, strict=True))))
        optional = [index for index, column in enumerate(self.columns) if fit and column.optional]
        legends: dict[int, list[str]] = {}
        for index in optional:
            label, *cells = columns[index]
            if max(map(len, cells), default=0) > LONG_SETTING:
                marks = {cell: f"[{number}]" for number, cell in enumerate(dict.fromkeys(cells), 1)}
                columns[index] = [label, *(marks[cell] for cell in cells)]
                legends[index] = [f"{label} {mark}: {cell}" for cell, mark in marks.items()]

        def measure() -> int:
            return sum(max(map(len, column)) + 2 for column in columns.values())

        while optional and console.is_terminal and measure() - 2 > console.width:
            label, *_ = columns.pop(optional.pop())
            hidden.insert(0, label)
        grid = Grid(box=None, pad_edge=False)
        for index, (label, *_) in columns.items():
            grid.add_column(escape(label), justify="left" if self.styles[index] else "right")
        for number, row in enumerate(self.rows, 1):
            grid.add_row(*(escape(column[number]) for column in columns.values()), style="bold" * bold(row))
        Console(width=measure()).print(grid)  # the full width, even if the terminal is narrower
        for index in columns:
            for line in legends.get(index, ()):
                console.print(line, markup=False)
        if hidden:
            console.print(f"Not shown{f' ({option})' * bool(option)}: {'; '.join(hidden)}", markup=False)


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def format_mean(row: Mapping[str, Any], name: str, short: bool = False) -> str:
    """A mean with NAME_sd, NAME_low and NAME_high, if the row has them: `0.850 ± 0.010 (0.830 to 0.870)`.

    `short` is for a narrow column: `0.850 (.830–.870)`.
    """
    value, deviation, low, high = (row.get(f"{name}{end}") for end in ("", "_sd", "_low", "_high"))
    text = "" if value is None else f"{value:.3f}"
    if short:
        ends = "\N{EN DASH}".join(f"{end:.3f}".removeprefix("0") for end in (low, high) if end is not None)
        return f"{text} ({ends})" if ends else text
    text += "" if deviation is None else f" ± {deviation:.3f}"
    return text if low is None else f"{text} ({low:.3f} to {high:.3f})"


def format_difference(value: float, low: float, high: float) -> str:
    """A difference with its interval: `+0.010 (−0.002 to +0.022)`."""
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "\N{MINUS SIGN}")


def format_p(row: Mapping[str, Any]) -> str:
    """The p-value `p` of a row."""
    p = row.get("p")
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _style(align: str | None, cells: Sequence[str]) -> str:
    has_numbers = any(len(cell) < LONG_TEXT and NUMBER.match(cell) for cell in cells)
    if align == "right" or (align is None and has_numbers):
        return ""
    return "text long" if max(map(len, cells), default=0) > LONG_TEXT else "text"


def escape_formula(value: Any) -> Any:
    """A value as a cell of a CSV file.

    Text that begins like a formula (= + - @) or with a control character gets a quote (') before it. Bytes in
    file names that are not UTF-8 become backslash escapes. Numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if re.match(r"'*[=+\-@\t\r\n]", text) else text


def unescape_formula(cell: str) -> str:
    """The text that `escape_formula` was given."""
    return cell[1:] if re.match(r"'+[=+\-@\t\r\n]", cell) else cell


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The text of a CSV file, each cell by `escape_formula`; None and missing values are empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(escape_formula, columns))
    writer.writerows([escape_formula(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()
