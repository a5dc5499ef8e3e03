"""The options of `polyp data`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from polyp.commands.options import Flag, option


@dataclass(frozen=True)
class Options:
    """Look at a data set before training.

    Prints a summary and writes a page: sizes, polyps, image quality, near-duplicates, and a suggested split
    beside it.
    """

    data: Annotated[Positional[str], option("FOLDER")] = "kvasir_seg"
    """A folder that holds images/ and masks/, or the name of a known data set, such as synthetic."""
    root: Annotated[str | None, option("FOLDER")] = None
    """Where a known data set is or shall be."""
    archive: Annotated[str | None, option("FILE")] = None
    """The zip file of a known data set."""
    images: Annotated[str, option("NAME")] = "images"
    """Name of the folder's subfolder of images."""
    masks: Annotated[str, option("NAME")] = "masks"
    """Name of the folder's subfolder of masks."""
    split: Annotated[str | None, option("SPLIT")] = None
    """official, pranet, random or a CSV: which near-duplicates straddle it (the published split)."""
    allow_empty: Flag = False
    """A mask without a polyp is no problem."""
    encoder: Annotated[str | None, option("NAME")] = None
    """An encoder that helps to find near-duplicates, with --weights."""
    weights: Annotated[str | None, option("FILE")] = None
    """Its weights, a .safetensors or .pt file."""
    seed: Annotated[int, option("N")] = 0
    """Of the suggested split, and of --split random."""
    out: Annotated[str | None, option("FILE.html")] = None
    """The page (outputs/data/NAME.html); the suggested split goes beside it."""

    def run(self) -> None:
        """Look at the data set."""
        from polyp.commands.data.survey import run

        run(self)
