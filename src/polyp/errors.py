"""Errors of the user's input and the parts of their messages: the key, the value and the way out."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import CompactHydraException, HydraException

T = TypeVar("T")

LISTED = 20  # choices that one message names
SPELT_OUT = 50  # problems that one message has a line for
SHELL_SIGNS = re.compile(r"""['"$`\\!]""")  # what double quotes in a shell leave as it is, and quotes


class InputError(CompactHydraException, ValueError):
    """Input that cannot work. The message names the file, key or value and the way out, in one line.

    Hydra prints this kind of exception without a traceback.
    """


def nearest(value: str, choices: Iterable[str], n: int = 3) -> str:
    """The choices most like `value`, as the end of a message: "did you mean a, b?"; all of them if none is
    like it.
    """
    choices = sorted(choices)
    close = get_close_matches(str(value), choices, n=n, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    rest = f" and {len(choices) - LISTED} more" if len(choices) > LISTED else ""
    return f"choose from {', '.join(choices[:LISTED])}{rest}"


def pick(key: str, value: Any, table: Mapping[str, T]) -> T:
    """Look a name up in a closed set.

    Args:
        key: the configuration key that the name was given with, for the message.
        value: the name.
        table: the named things.

    Raises:
        InputError: the name is not in the table; the message has the nearest names.
    """
    if not isinstance(value, str) or value not in table:  # a list or dict cannot even be looked up
        raise InputError(f"{key}={value} is unknown: {nearest(value, table)}")
    return table[value]


def describe_error(error: BaseException, limit: int = 150) -> str:
    """The reason of an exception in one line of at most `limit` characters.

    The system's own words for an OSError ("No space left on device"), else the exception's text, else its
    class.
    """
    text = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    line = " ".join(printable(word) for word in str(text).split())
    return line[:limit] or type(error).__name__


def several(headline: str, problems: Sequence[str]) -> InputError:
    """An error about several files: a headline with their count, then a line for each of the first."""
    lines = [headline, *problems[:SPELT_OUT]]
    if len(problems) > SPELT_OUT:
        lines.append(f"... and {len(problems) - SPELT_OUT} more")
    return InputError("\n  ".join(lines))


def require(extra: str, *modules: str) -> None:
    """Say what to install if a module of an extra of polyp's is missing.

    Raises:
        InputError: it is; the message has the command.
    """
    for module in modules:
        if find_spec(module) is None:
            raise InputError(f"{module} is not installed: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that installs an extra of polyp's, in a clone or beside an installed package."""
    is_clone = (Path(__file__).parents[2] / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if is_clone else f"pip install 'polyp-segmentation[{extra}]'"


def train_command() -> str:
    """The command that trains, from the current folder."""
    return "python train.py" if Path("train.py").is_file() else "polyp train"


def override_text(key: str, value: Any) -> str:
    """An override that sets a key to a text, a number or a list of them, with quotes around a text that Hydra
    would read as something else.
    """
    return f"{key}={_hydra_value(value)}"


def _hydra_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_hydra_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {_hydra_value(item)}' for key, item in value.items())}}}"
    text = str(value)
    try:
        is_plain = OverridesParser.create().parse_override(f"key={text}").value() in (value, text)
    except HydraException:
        is_plain = False
    return text if is_plain and "\\" not in text else hydra_text(text)


def hydra_text(text: str) -> str:
    """A text in quotes, as part of an override's value."""
    quote = Quote.double if SHELL_SIGNS.search(text) else Quote.single
    return QuotedString(text, quote).with_quotes()


def shell_word(text: Any) -> str:
    """A word of a shell's command line, with quotes if it needs them."""
    word = str(text)
    return f'"{word}"' if "'" in word and not SHELL_SIGNS.search(word.replace("'", "")) else shlex.quote(word)


def override_word(key: str, value: Any) -> str:
    """As `override_text`, as a word of a shell's command line."""
    return shell_word(override_text(key, value))


def printable(name: Any) -> str:
    """A file's name as one line: line breaks, control characters and broken bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
