"""Types of command-line options: what several commands share, and how an option looks in the help.

The options of a command are the fields of the dataclass `Options` in its package's options.py: name, type,
default, and below it the help. These modules import nothing heavy, since `polyp --help` imports all of them.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec


def option(metavar: str | None = None, help: str | None = None, name: str | None = None) -> Any:
    """How an option looks in the help, for `Annotated`; a default such as None or False is not shown."""

    def show_default(value: str) -> str:
        return "" if value in ("", "None", "False", "True") else f"(default: {value})"

    return arg(name=name, metavar=metavar, help=help, help_behavior_hint=show_default)


def _word(metavar: str, parse: Callable[[str], Any], show: Callable[[Any], str] = str) -> Any:
    """A type whose value is one word of the command line; `parse` raises ValueError for a wrong one."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [show(value)],
    )


Flag = Annotated[bool, option()]
"""--NAME if the default is False, --no-NAME if it is True."""

Number = Annotated[float | None, _word("P", float), option()]

Numbers = Annotated[
    tuple[float, ...],
    _word(
        "N,N",
        lambda word: tuple(float(number) for number in word.split(",")),
        lambda numbers: ",".join(f"{number:g}" for number in numbers),
    ),
]
"""Numbers with commas between them."""

Compute = Annotated[
    Literal["exact", "fast"],
    option(
        help="exact: each image by itself, in the precision that the run was tested in; fast: several at "
        "once, in the precision that the device gains from."
    ),
]
Device = Annotated[str, option("NAME", "auto, cpu, cuda, cuda:1 or mps.")]
Root = Annotated[str | None, option("FOLDER", "Where the run's data are, if they have moved.")]
Archive = Annotated[str | None, option("FILE", "The archive of the run's data, if it has moved.")]
