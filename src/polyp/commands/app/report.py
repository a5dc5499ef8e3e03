"""Lines for the operator's terminal, few of them whatever clients do."""

import sys
from contextlib import suppress
from time import monotonic

QUIET = 10.0
"""Seconds after a line in which problems of the same kind are counted, not printed."""

_printed: dict[str, tuple[float, int]] = {}


def report(kind: str, message: str) -> bool:
    """Print a problem as one line to stderr, at most one of its kind every `QUIET` seconds.

    Args:
        kind: of a closed set, such as "upload"; never anything that a client has sent.
        message: one line, without control characters.

    Returns:
        Whether it was printed.
    """
    now = monotonic()
    last, skipped = _printed.get(kind, (now - QUIET, 0))
    if now - last < QUIET:
        _printed[kind] = last, skipped + 1
        return False
    _printed[kind] = now, 0
    more = f" ({skipped} more of this kind since the last line)" if skipped else ""
    with suppress(OSError, ValueError):  # stderr is a file on a full disk, or is closed: the request goes on
        print(f"polyp app: {message}{more}", file=sys.stderr, flush=True)
    return True
