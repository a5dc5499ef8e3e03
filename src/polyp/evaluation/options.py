"""The options of `polyp evaluate`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from polyp.errors import InputError
from polyp.options import Archive, Compute, Device, Flag, Numbers, Root, option


@dataclass(frozen=True)
class Options:
    """Score a trained model, or the average of several.

    Leaves the numbers, a row for each image and a page with pictures in the run's folder, under evaluations/.
    """

    models: Annotated[Positional[tuple[str, ...]], option("RUN_OR_CHECKPOINT...")]
    """Run folders, checkpoints or exported models; of several the probabilities are averaged."""
    data: Annotated[str | None, option("FOLDER")] = None
    """Score on this folder with images/ and masks/, or with folders that have these (the run's test images)."""
    images: Annotated[str, option("NAME")] = "images"
    """Name of the folder of images in FOLDER."""
    masks: Annotated[str, option("NAME")] = "masks"
    """Name of the folder of masks in FOLDER."""
    normal: Flag = False
    """No image of FOLDER shows a polyp; there are no masks."""
    subset: Literal["test", "val", "train"] = "test"
    """Which of the run's own images."""
    root: Root = None
    archive: Archive = None
    tta: Flag = False
    """Average over the image and its flips."""
    scales: Numbers = (1.0,)
    """Average over these multiples of the network's resolution, such as 0.75,1,1.25."""
    threshold: Annotated[float, option("P")] = 0.5
    """A pixel is polyp from this probability on."""
    missed: Annotated[float, option("SHARE")] = 0.1
    """The share of a polyp's pixels that may be missed by the threshold that is chosen on validation images."""
    confidence: Annotated[float, option("P")] = 0.95
    """The probability with which that threshold keeps to --missed."""
    device: Device = "auto"
    compute: Compute = "exact"
    name: Annotated[str | None, option("NAME")] = None
    """Of the folder under evaluations/."""
    overwrite: Flag = False
    """Replace an evaluation of that name."""

    def run(self) -> list[dict[str, Any]]:
        """Score the models; the content of each evaluation's metrics.json."""
        if not self.models:
            raise InputError("give at least one RUN_OR_CHECKPOINT")
        from polyp.evaluation import evaluate

        options = vars(self).copy()
        return evaluate.evaluate(options.pop("models"), evaluate.Options(**options))
