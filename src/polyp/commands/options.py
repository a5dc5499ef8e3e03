"""Types of command-line options that several commands share, and their appearance in the help.

The options of a command are the fields of the dataclass `Options` in its package's options.py: name, type,
default, and below it the help. These modules import nothing heavy, since `polyp --help` imports all of them.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from polyp.errors import InputError, shell_word

if TYPE_CHECKING:
    from polyp.runs.model import ModelSource


def option(metavar: str | None = None, help: str | None = None, name: str | None = None) -> Any:
    """The appearance of an option in the help, for `Annotated`; the defaults None and False are not shown."""

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


def find_models(
    names: Sequence[str], root: str | None = None, archive: str | None = None
) -> "Sequence[ModelSource]":
    """Find models before torch is imported, which takes seconds.

    Args:
        names: paths of runs, sweeps, checkpoints or exported models.
        root, archive: where the data of the runs are, if they have moved.

    Raises:
        InputError: a path is no model, or `root` or `archive` is not there.
    """
    from polyp.runs.model import find_sources  # imports Hydra

    sources = find_sources(names)
    check_root(root)
    if archive is not None and not Path(archive).expanduser().is_file():
        raise InputError(f"--archive {archive} is not a file")
    return sources


def check_root(root: str | None) -> None:
    """Raise InputError if the folder to which the data have moved is not there."""
    if root is not None and not Path(root).expanduser().is_dir():
        raise InputError(f"--root {root} is not a folder")


Flag = Annotated[bool, option()]  # --NAME if the default is False, --no-NAME if it is True

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


def _parse_values(word: str) -> tuple[int | str, ...] | str:
    """A comparison such as '!= 0', or values such as 1,2 or [#ff0000,#00ff00]."""
    if word.strip().startswith(("!", "=", "<", ">")):
        return word
    values = [value.strip(" '\"") for value in word.strip("[] ").split(",")]
    return tuple(int(value) if value.isdigit() else value for value in values)


Values = Annotated[tuple[int | str, ...] | str | None, _word("V,V", _parse_values)]
Value = Annotated[int | str | None, _word("V", lambda word: int(word) if word.isdigit() else word)]
Labels = Annotated[tuple[str, ...] | None, _word("L,L", lambda word: tuple(word.split(",")))]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The layout of a folder of images and masks and their coding: the keys of conf/data/folder.yaml."""

    images: Annotated[str | None, option("NAME")] = None
    """The folder of images (found by its name), or a pattern such as '*.jpg'."""
    masks: Annotated[str | None, option("NAME")] = None
    """The folder of masks (found by its name), a pattern, or polygons: a JSON file or a folder."""
    image_name: Annotated[str | None, option("PATTERN")] = None
    """How images are named, such as '{stem}_0000' (found)."""
    mask_name: Annotated[str | None, option("PATTERN")] = None
    """How masks are named, such as '{stem}_mask' (found)."""
    missing_mask: Annotated[Literal["error", "empty"], option()] = "error"
    """empty: an image without a mask has no polyp."""
    polyp_values: Annotated[Values, option("V,V")] = None
    """What is polyp in the masks: 1,2 or '#ff0000' or '> 127' (they are two-valued)."""
    polyp_labels: Annotated[Labels, option("L,L")] = None
    """Which labels of polygons are polyps (there is only one)."""
    ignore_value: Annotated[Value, option("V")] = None
    """The value or colour of pixels that do not count."""

    @property
    def layout(self) -> dict[str, Any]:
        """The options above by name, except for those that have their default."""
        values = {field.name: getattr(self, field.name) for field in fields(DataOptions)}
        return {name: value for name, value in values.items() if value not in (None, "error")}


def name_options(text: str) -> str:
    """Replace the configuration keys of the data in a message by the options of a command."""
    text = re.sub(r"""(?=['"]data\.)(?:'[^']*'|"[^"]*")+""", _name_option, text.removeprefix("data.root="))
    text = text.replace("data.allow_empty=true", "--allow-empty")
    keys = r"\bdata\.([a-z_]+)"
    text = re.sub(keys, r"--\1", re.sub(keys + "= ?", r"--\1 ", text)).rstrip()
    return re.sub(r"--[a-z_]+", lambda match: match[0].replace("_", "-"), text)


def _name_option(match: re.Match[str]) -> str:
    """Replace an override in quotes for the shell by an option."""
    from polyp.runs.overrides import parse_override

    override = parse_override(shlex.split(match[0])[0])
    if override is None:
        return match[0]
    value = override.value()
    text = ",".join(map(str, value)) if isinstance(value, list) else value
    return f"--{override.key_or_group.removeprefix('data.').replace('_', '-')} {shell_word(text)}"
