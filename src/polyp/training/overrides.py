"""Overrides of a command line, and those that were read from a file, which somebody else may have written."""

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from polyp.runs import identity

IMPORT_PATH = re.compile(r"[^\W\d]\w*\.[^\W\d]|\$\{")
"""`package.name`, or an interpolation that may become one."""

OUTSIDE_PATH = re.compile(r"""\.\.|(^|[\s\[{(,:'"])[/\\]""")
"""`..` or an absolute path: as the choice of a configuration group it would read a file outside conf/."""


def parse_overrides(overrides: Sequence[str]) -> dict[str, Override]:
    """Overrides KEY=VALUE by key; of a key that is given twice, the last counts."""
    return {
        each.get_key_element(): each for each in OverridesParser.create().parse_overrides(list(overrides))
    }


def find_objection(override: str) -> str | None:
    """The reason to refuse an override KEY=VALUE from a file; None if it is allowed.

    Allowed is whatever sets a key of the task. Not allowed are Hydra's own keys and `callbacks`, whose values
    can name any function to call; resolvers, such as `${oc.env:HOME}`, which read what is on this machine;
    files outside conf/; and the import path of code.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return "cannot be understood"
    if re.match(r"hydra\b", parsed.key_or_group) or parsed.package is not None:
        return "is no key of the task"
    if re.match(r"callbacks\b", parsed.key_or_group):
        return "names code to import"
    value = override.partition("=")[2]
    if "${" in value and ":" in value.partition("${")[2]:
        return "is a value that depends on this machine"
    if "." not in parsed.key_or_group and OUTSIDE_PATH.search(value):
        return "is a file outside conf/"
    if identity.matches(parsed.key_or_group, identity.CODE) and IMPORT_PATH.search(value):
        return "would import code"
    return None
