"""The options of `polyp predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction

from polyp import terminal
from polyp.commands.options import Compute, Device, Flag, Number, find_models, option
from polyp.errors import InputError


@dataclass(frozen=True)
class Options:
    """Find polyps in new images and videos.

    Writes masks of their size, pictures with the polyps drawn on them, tables, and a page that shows all of
    it. A command that was interrupted continues where it was when it is given again.
    """

    model: Annotated[Positional[str], option("RUN")]
    """A run's folder, a sweep over seeds or folds, a checkpoint, or an exported model."""
    inputs: Annotated[Positional[tuple[str, ...]], option("INPUT...")]
    """Images, videos, and folders of these."""
    with_: Annotated[UseAppendAction[tuple[str, ...]], option("RUN", name="with")] = ()
    """Average with this model; repeatable."""
    out: Annotated[str | None, option("FOLDER")] = None
    """Where to write (RUN/predictions/NAME, NAME being that of the folder or of a single file)."""
    threshold: Number = None
    """A pixel is polyp from this probability on (the run's own)."""
    probabilities: Flag = False
    """Also write the probabilities, as PNG of 16 bits: 65535 is 1."""
    overlays: Flag = True
    """No pictures, masks and tables alone."""
    overwrite: Flag = False
    """Predict again what is finished, and replace predictions of other models."""
    tta: Flag = False
    """Average over the image and its flips."""
    compute: Compute = "exact"
    device: Device = "auto"

    def run(self) -> Path:
        """Predict the inputs; the folder that was written."""
        if not self.inputs:
            raise InputError("give at least one INPUT: an image, a video, or a folder of these")
        find_models([self.model, *self.with_])
        with terminal.loading():
            from polyp.commands.predict.predict import run

        return run(self)
