"""CSV files: text that a spreadsheet would take for a formula is escaped when written, and restored when read."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def escape(value: Any) -> Any:
    """A cell as it is written: text that begins like a formula (= + - @) or with a control character gets a quote (').

    Bytes of a file's name that are no UTF-8 are written as backslash escapes. Numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if re.match(r"'*[=+\-@\t\r\n]", text) else text


def unescape(cell: str) -> str:
    """The text of which `escape` made this cell."""
    return cell[1:] if re.match(r"'+[=+\-@\t\r\n]", cell) else cell


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A table as the text of a CSV file, with `escape` applied to every cell.

    Args:
        rows: a cell for each column; None and what is missing stay empty.
        columns: in their order.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(escape, columns))
    writer.writerows([escape(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def read_csv(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that `to_csv` has made.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no text in UTF-8, or no table: empty, or with a row that is longer or shorter than its head.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            lines = [[unescape(cell) for cell in line] for line in csv.reader(stream) if line]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not lines:
        raise ValueError("it is empty")
    head, *rows = lines
    if any(len(row) != len(head) for row in rows):
        raise ValueError("a row has not as many cells as there are columns")
    return [dict(zip(head, row, strict=True)) for row in rows]
