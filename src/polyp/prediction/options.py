"""The options of `polyp predict`; imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Find polyps in new images and videos."""

    model: str
    """A run's folder, a checkpoint, or an exported model."""
    inputs: tuple[str, ...]
    """Images, videos, and folders of these."""
    with_: tuple[str, ...] = ()
    """Other models; the probabilities are averaged."""
    out: str | None = None
    """The folder to write to; by default RUN/predictions/NAME, NAME being that of the inputs' folder."""
    threshold: float | None = None
    """A pixel is polyp from this probability on; by default the run's own."""
    probabilities: bool = False
    """Also write the probabilities, as PNG of 16 bits: 65535 is 1."""
    overlays: bool = True
    """Write the images and videos with the polyps drawn on them."""
    overwrite: bool = False
    """Predict again what is finished, and replace predictions of other models."""
    tta: bool = False
    """Average over the image and its flips."""
    compute: str = "exact"
    """exact, or fast: several images at once, in the precision that the device gains from."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
