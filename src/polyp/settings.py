"""Settings of a configuration, checked against the signature of what is made from them."""

import importlib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from polyp.errors import InputError, describe_error, nearest, override_word, printable, several

NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def check_keys(
    section: str, keys: Mapping[Any, Any], *functions: Callable[..., Any], exclude: Sequence[str] = ()
) -> None:
    """Compare a section of the configuration with the arguments of what is made from it: their names and
    types.

    Args:
        section: its name, for the message.
        keys: the section.
        functions: the classes or functions that will be called with `**keys`; each takes its part.
        exclude: arguments that do not come from the section.

    Raises:
        InputError: an argument is unknown, missing or of another type; all of them, with the nearest that are
            known.
    """
    arguments: dict[str, inspect.Parameter] = {}
    types_of: dict[str, Any] = {}
    for function in functions:
        arguments |= inspect.signature(function).parameters
        types_of |= get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    arguments = {
        name: argument
        for name, argument in arguments.items()
        if argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL) and name not in exclude
    }
    problems = []
    for key, value in keys.items():
        name = f"{section}.{printable(key)}"
        if key not in arguments:
            problems.append(f"{name} is unknown: {nearest(key, arguments)}")
        elif not _fits(value, expected := types_of.get(key, Any)):
            choices = [choice for choice in _choices(expected) if isinstance(choice, str)]
            reason = nearest(str(value), choices) if choices else f"it must be {_describe(expected)}"
            if not choices and type(value) in (int, float) and _fits(str(value), expected):
                reason += f", such as {override_word(name, str(value))}"  # a folder's name may be a number
            problems.append(f"{name}={printable(value)} cannot work: {reason}")
    for key, argument in arguments.items():
        if argument.default is argument.empty and key not in keys:
            problems.append(f"{section}.{key} is missing")
    raise_together(problems)


def is_import_path(value: Any) -> bool:
    """Whether a value of a setting names code: `package.module.name`, or a mapping with such a key."""
    if isinstance(value, Mapping):
        return any(map(is_import_path, value))
    return isinstance(value, str) and "." in value and all(map(str.isidentifier, value.split(".")))


def import_object(key: str, path: str) -> Any:
    """Import what a setting names; modules in the working directory are found last.

    Only for settings of the user's command or conf/, never for those that a file of a run has.

    Args:
        key: the setting's, for the message.
        path: `package.module.name`.

    Raises:
        InputError: it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise InputError(f"{key}={path} is no import path: write my_package.{path or 'NAME'}")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"{key}={path} cannot be imported: {describe_error(error)}") from error


class SettingsError(InputError):
    """Several settings cannot work: a headline, and a line for each of the `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        """The headline and the lines."""
        return str(several(f"{len(self.problems)} settings cannot work:", self.problems))


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Keep what an InputError says that is raised inside, so that several can be reported together."""
    try:
        yield
    except InputError as error:
        problems += error.problems if isinstance(error, SettingsError) else [str(error)]


def raise_together(problems: Sequence[str]) -> None:
    """Report the problems that were collected; nothing happens if there is none.

    Raises:
        InputError: in one line if there is one, else a `SettingsError`.
    """
    distinct = list(dict.fromkeys(problems))  # data and model share the image size
    if distinct:
        raise SettingsError(distinct) if len(distinct) > 1 else InputError(distinct[0])


def _fits(value: Any, expected: Any) -> bool:
    """Whether a plain value of a configuration is of a type; True is no number, and 1 is a float, too."""
    origin = get_origin(expected)
    if expected is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(expected))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(expected))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, get_args(expected)[0]) for item in value)
    if expected in (int, float):
        is_number = isinstance(value, int | expected) and not isinstance(value, bool)
        return is_number and not math.isnan(value)
    return isinstance(expected, type) and isinstance(value, expected)


def _choices(expected: Any) -> list[Any]:
    """The choices of a Literal, also inside a union."""
    if get_origin(expected) is Literal:
        return list(get_args(expected))
    return [choice for option in get_args(expected) for choice in _choices(option)]


def _describe(expected: Any) -> str:
    """A type in words: "a whole number or null"."""
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        names = dict.fromkeys(_describe(option) for option in get_args(expected))
        return " or ".join(name for name in names if name)
    if origin is Literal:
        return " or ".join(map(str, get_args(expected)))
    if origin is not None and issubclass(origin, Mapping):
        return "keys with values"
    if origin is not None and issubclass(origin, Sequence):
        return "a list"
    return NAMES.get(expected, "")  # a class of Lightning's cannot be given in a configuration
