"""`polyp …`: what can be asked of data and of runs. Nothing but arguments: each command imports its room when asked."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from polyp.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what is wrong with the user's input is said in one line, and the exit code is then 1."""
    parser = argparse.ArgumentParser(prog="polyp", description="Look at data, score models, compare runs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    given = parser.parse_args(argv)
    try:
        given.run(given)
    except InputError as error:
        sys.exit(f"polyp: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


COMMANDS: Sequence[Callable[[Any], None]] = ()


if __name__ == "__main__":
    main()
