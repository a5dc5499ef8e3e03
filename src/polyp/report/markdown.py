"""Markdown documents from templates, in which every value is escaped."""

import html
import re
from typing import Any

from polyp.errors import printable


class Markdown(str):
    """Text that is already Markdown and must not be escaped."""


def escape_markdown(value: Any) -> Markdown:
    """A value as one line of text, without HTML, links, markup or the end of a table cell."""
    if isinstance(value, Markdown):
        return value
    line = re.sub(r"[\\`*\[\]|~@]|\b_|_\b|:(?=//)|(?<=www)\.", r"\\\g<0>", _one_line(value))
    # Not every Markdown reader understands \\<, so < becomes an entity.
    return Markdown(html.escape(line, quote=False))


def format_code(value: Any) -> Markdown:
    """A value as `code`, or escaped if one of its characters would end the code or the cell."""
    line = _one_line(value)
    return escape_markdown(line) if re.search(r"[`<>&|\\]", line) else Markdown(f"`{line}`")


def render_markdown(template: str, **values: Any) -> str:
    """Fill in a Markdown template of report/templates; values are escaped unless they are `Markdown`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("polyp.report"),
        undefined=StrictUndefined,
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def _one_line(value: Any) -> str:
    return " ".join(printable(word) for word in str(value).split())
