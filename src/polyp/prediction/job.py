"""What a call of `polyp predict` is to do: its options, and what is made of each input."""

from dataclasses import dataclass

from polyp.inference.predictor import Predictor
from polyp.prediction import record as places
from polyp.prediction.inputs import Input
from polyp.prediction.record import Predictions, Record


@dataclass(frozen=True)
class Options:
    """How to predict; the fields are the options of `polyp predict`.

    Attributes:
        out: the folder to write to; by default one in the first run's folder, under predictions/.
        threshold: a pixel is polyp from this probability on; None for the first run's own.
        probabilities: also write the probabilities, as PNG of 16 bits: 65535 is 1.
        overlays: write the images and videos with the polyps drawn on them.
        tta: average over the image and its flips.
        compute: exact, or fast: several images at once, in the precision that the device gains from.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: predict again what is finished, and replace predictions of other models.
    """

    out: str | None = None
    threshold: float | None = None
    probabilities: bool = False
    overlays: bool = True
    tta: bool = False
    compute: str = "exact"
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Job:
    """What all images of a call have in common."""

    predictor: Predictor
    threshold: float
    options: Options
    predictions: Predictions
    names: dict[Input, str]
    problems: list[str]

    def files(self, one: Input) -> list[str]:
        """What is to be made of an input."""
        name = self.names[one]
        if one.is_video:
            return [f"{places.VIDEOS}/{name}.csv"] + [f"{places.VIDEOS}/{name}.webm"] * self.options.overlays
        return (
            [f"{places.MASKS}/{name}.png"]
            + [f"{places.OVERLAYS}/{name}.jpg"] * self.options.overlays
            + [f"{places.PROBABILITIES}/{name}.png"] * self.options.probabilities
        )

    def finished(self, one: Input) -> bool:
        """Whether everything is there already, of the file as it is now."""
        known = self.predictions.records.get(str(one.path))
        return known is not None and known["stamp"] == one.stamp and set(self.files(one)) <= set(known["files"])

    def record(self, one: Input, content: Record) -> Record:
        """What is noted of an input that is finished."""
        about = {"source": str(one.path), "stamp": one.stamp, "name": self.names[one], "files": self.files(one)}
        return content | about
