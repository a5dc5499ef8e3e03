"""Markdown documents from templates, in which every value is escaped."""

import html
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from polyp.errors import printable

if TYPE_CHECKING:
    from jinja2 import Environment


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def escape_markdown(value: Any) -> Markdown:
    """A value as one line of text: nothing in it is HTML, a link, markup or the end of a table's cell."""
    if isinstance(value, Markdown):
        return value
    line = re.sub(r"[\\`*\[\]|~@]|\b_|_\b|:(?=//)|(?<=www)\.", r"\\\g<0>", _one_line(value))
    # Entities, since not every reader of Markdown knows \\< for <.
    return Markdown(html.escape(line, quote=False))


def format_code(value: Any) -> Markdown:
    """A value set as code, or escaped where a character of it would end the code or the cell."""
    line = _one_line(value)
    return escape_markdown(line) if re.search(r"[`<>&|\\]", line) else Markdown(f"`{line}`")


def render_markdown(template: str, **values: Any) -> str:
    """The text of a Markdown template with its values, each escaped unless it is `Markdown`.

    Args:
        template: a file of report/templates.
        values: of its variables.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("polyp.report"),
        undefined=StrictUndefined,
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _one_line(value: Any) -> str:
    return " ".join(printable(word) for word in str(value).split())
