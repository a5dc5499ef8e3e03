"""The options of `polyp data`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from polyp import terminal
from polyp.commands.options import DataOptions, Flag, option


@dataclass(frozen=True)
class Options(DataOptions):
    """Look at a data set before training.

    Prints what was understood of the files and a summary, and writes a page: sizes, polyps, problems,
    near-duplicates, and a suggested split beside it.
    """

    data: Annotated[Positional[tuple[str, ...]], option("FOLDER...")] = ("kvasir_seg",)
    """Folders of images and masks, or the name of a known data set, such as synthetic."""
    root: Annotated[str | None, option("FOLDER")] = None
    """Where a known data set is or shall be."""
    archive: Annotated[str | None, option("FILE")] = None
    """The zip file of a known data set."""
    split: Annotated[str | None, option("SPLIT")] = None
    """As data.split: which near-duplicates straddle it (the published split)."""
    group: Annotated[str | None, option("GROUP")] = None
    """As data.group: folder, source or a column of the split's CSV."""
    allow_empty: Flag = False
    """A mask without a polyp is no problem."""
    seed: Annotated[int, option("N")] = 0
    """Of the suggested split, and of --split random."""
    out: Annotated[str | None, option("FILE.html")] = None
    """The page (outputs/data/NAME.html); the suggested split goes beside it."""

    def run(self) -> None:
        """Look at the data set."""
        with terminal.loading():
            from polyp.commands.data.data import run

        run(self)
