"""The options of `polyp compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from polyp import terminal
from polyp.commands.options import Flag, Root, check_root, option
from polyp.errors import InputError


@dataclass(frozen=True)
class Options:
    """Compare runs: what differs, which is best, which differences are more than chance.

    Leaves a page with pictures, a table and the model card of one run.
    """

    folders: Annotated[Positional[tuple[str, ...]], option("FOLDER...")] = ()
    """Runs, sweeps, or folders of these, such as outputs/."""
    out: Annotated[str | None, option("FOLDER")] = None
    """Where to write (outputs/comparisons/DATE_TIME)."""
    overwrite: Flag = False
    """Replace the comparison that is there."""
    card: Annotated[str | None, option("RUN")] = None
    """The run whose model card is written (the best by validation)."""
    root: Root = None
    all_columns: Flag = False
    """Print the whole table, however wide the terminal is."""
    pictures: Flag = True
    """The numbers alone, in seconds."""

    def run(self) -> Path:
        """Compare the runs; the folder that was written."""
        if not (self.folders or self.card):
            raise InputError("give a FOLDER of runs, such as outputs/")
        check_root(self.root)
        with terminal.loading():
            from polyp.commands.compare.compare import run

        return run(self)
