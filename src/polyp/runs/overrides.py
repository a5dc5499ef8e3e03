"""Overrides: those of a command line, and those from a file, which somebody else may have written."""

import re
import sys
from collections.abc import Sequence
from itertools import groupby

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from polyp.errors import hydra_text, override_word, printable, shell_word
from polyp.runs import identity

OVERRIDE = re.compile(r"-|~|\+{0,2}[a-z_$][\w$./@-]*=", re.ASCII | re.IGNORECASE)
"""The beginning of a flag or an override; any other word belongs to the value before it."""

IMPORT_PATH = re.compile(r"[^\W\d]\w*\.[^\W\d]|\$\{")
"""`package.name`, or an interpolation that may become one."""

OUTSIDE_PATH = re.compile(r"""\.\.|(^|[\s\[{(,:'"])[/\\]""")
"""`..` or an absolute path: as the choice of a configuration group it would read a file outside conf/."""


def parse_override(override: str) -> Override | None:
    """An override as Hydra understands it; None if it does not."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def parse_overrides(overrides: Sequence[str]) -> dict[str, Override]:
    """Overrides KEY=VALUE by key; of a key that is given twice, the last counts."""
    parser = OverridesParser.create()
    return {override.get_key_element(): override for override in parser.parse_overrides(list(overrides))}


def task_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what is computed, without those that say how the command runs."""
    return [override for override in overrides if override.partition("=")[0] not in identity.COMMAND]


def check_overrides(argv: Sequence[str]) -> None:
    """Check that Hydra understands a command line's overrides as they were meant.

    Raises:
        SystemExit: a value needs quotes, or was taken apart by the shell, or has a comma without -m; the line
            has the override, ready to paste.
    """
    is_sweep = bool({"-m", "--multirun"} & set(argv))
    may_sweep = any(word.startswith(("-", "experiment=", "hydra.mode=")) for word in argv)
    texts = _join_words(argv[1:])
    _check_braces(texts)
    for text in texts:
        key, equals, value = text.partition("=")
        if text.startswith("-") or not equals:
            continue
        if (override := parse_override(text)) is None or text not in argv:
            correction = f"{key}={_quote(value, is_sweep)}"
            if parse_override(correction) is None:
                sys.exit(
                    f"{printable(text)} cannot be understood: give KEY=VALUE, where KEY and the names of "
                    "{NAME: VALUE} have letters a-z, digits and _ only"
                )
            sys.exit(f"{printable(text)} has characters that need quotes: write {shell_word(correction)}")
        if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP and not may_sweep:
            sys.exit(
                f"{printable(text)} gives several values: add -m to run each, or write "
                f"{shell_word(f'{key}=[{value}]')} for a list or {override_word(key, value)} for one text"
            )


def _join_words(words: Sequence[str]) -> list[str]:
    """Flags and overrides; the words of a value with spaces that had no quotes are joined."""
    texts: list[str] = []
    for word in words:
        if OVERRIDE.match(word) or not texts or texts[-1].startswith("-"):
            texts.append(word)
        else:
            texts[-1] += f" {word}"
    return texts


def _check_braces(overrides: Sequence[str]) -> None:
    """Refuse two overrides that a shell has made of `data.root={A,B}`: Hydra would take the last one."""
    for key, group in groupby(overrides, key=lambda override: override.partition("=")[0]):
        values = [override.partition("=")[2] for override in group]
        are_pairs = all(":" in value for value in values)
        if len(values) > 1 and (key.startswith("data.") or (key == "model.loss" and are_pairs)):
            text = ",".join(values)
            text = _quote(f"{{{text}}}" if are_pairs else f"[{text}]")
            sys.exit(
                f"{key} is given {len(values)} times, which is what a shell makes of {key}={{A,B}}: write "
                f"{shell_word(f'{key}={text}')}"
            )


def _quote(value: str, is_sweep: bool = False) -> str:
    """A value with quotes around the parts that Hydra does not understand.

    Args:
        value: a text, a list `[A,B]` or `choice(A,B)`, a mapping `{NAME: A}`, or values of a sweep.
        is_sweep: commas separate the values of a sweep.
    """
    value = value.strip()
    if parse_override(f"key={value}"):
        return value
    if match := re.fullmatch(r"(\[|choice\()(.*)([\])])", value):
        return f"{match[1]}{','.join(map(_quote, _split(match[2])))}{match[3]}"
    pairs = [part.partition(":") for part in _split(value[1:-1])]
    if value.startswith("{") and value.endswith("}") and all(colon for _, colon, _ in pairs):
        return f"{{{','.join(f'{name}: {_quote(text)}' for name, _, text in pairs)}}}"
    if is_sweep and len(choices := _split(value)) > 1:
        return ",".join(map(_quote, choices))
    return hydra_text(value)


def _split(text: str) -> list[str]:
    """The parts between the commas that are outside quotes and brackets."""
    parts, depth = [""], 0
    for token in re.findall(r"""(?<![^\[{,:\s])(?:'[^']*'|"[^"]*")|.""", text, re.DOTALL):
        depth += (token in "[{(") - (token in ")}]")
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def find_objection(override: str) -> str | None:
    """The reason to refuse an override KEY=VALUE from a file; None if it is allowed.

    An override may set any key of the task. Refused are Hydra's keys and `callbacks`, whose values can name
    any function to call; resolvers, such as `${oc.env:HOME}`, which read what is on this machine; files
    outside conf/; and the import path of code.
    """
    if (result := parse_override(override)) is None:
        return "cannot be understood"
    key, value = result.key_or_group, override.partition("=")[2]
    if re.match(r"hydra\b", key) or result.package is not None:
        return "is no key of the task"
    if re.match(r"callbacks\b", key):
        return "names code to import"
    if "${" in value and ":" in value.partition("${")[2]:
        return "is a value that depends on this machine"
    if "." not in key and OUTSIDE_PATH.search(value):
        return "is a file outside conf/"
    if identity.matches(key, identity.CODE) and IMPORT_PATH.search(value):
        return "would import code"
    return None
