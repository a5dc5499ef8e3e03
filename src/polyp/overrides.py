"""Overrides that were read from a file: somebody else may have written it."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

PATH_UPWARDS = re.compile(r"""\.\.|(^|[\s\[{(,:'"])[/\\]""")
"""`..` or an absolute path: as the choice of a configuration group it would read a file outside conf/."""


def reason_to_refuse(override: str) -> str | None:
    """Why an override KEY=VALUE from a file is not taken; None if it is.

    Taken is whatever sets a key of the task. Not taken are Hydra's own keys, whose values can name any function to
    call; resolvers, such as `${oc.env:HOME}`, which read what is on this machine; and files outside conf/.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return "cannot be understood"
    if re.match(r"hydra\b", parsed.key_or_group) or parsed.package is not None:
        return "is no key of the task"
    value = override.partition("=")[2]
    if "${" in value and ":" in value.partition("${")[2]:
        return "is a value that depends on this machine"
    if "." not in parsed.key_or_group and PATH_UPWARDS.search(value):
        return "is a file outside conf/"
    return None
