"""The options of `polyp evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Positional

from polyp import terminal
from polyp.commands.options import (
    Archive,
    Compute,
    DataOptions,
    Device,
    Flag,
    Numbers,
    Root,
    find_models,
    option,
)
from polyp.errors import InputError, pick

CorruptionName = Literal["blur", "noise", "jpeg", "dark", "bright", "colour", "highlights", "view"]


@dataclass(frozen=True)
class Options(DataOptions):
    """Score a trained model, or the average of several.

    Leaves the numbers, a row for each image and a page with pictures in the run's folder, under evaluations/.
    """

    models: Annotated[Positional[tuple[str, ...]], option("RUN_OR_CHECKPOINT...")]
    """Run folders, sweeps over seeds or folds, checkpoints or exported models; several are averaged."""
    data: Annotated[str | None, option("FOLDER")] = None
    """Score on the images and masks of this folder, in any layout (the run's test images)."""
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
    """Share of a polyp's pixels that may be missed by the threshold that is chosen on validation images."""
    confidence: Annotated[float, option("P")] = 0.95
    """The probability with which that threshold keeps to --missed."""
    corruptions: Annotated[tuple[CorruptionName, ...] | None, option("NAME")] = None
    """Measure what corrupted images cost, at five severities: all kinds, or NAME NAME."""
    device: Device = "auto"
    compute: Compute = "exact"
    name: Annotated[str | None, option("NAME")] = None
    """Of the folder under evaluations/."""
    overwrite: Flag = False
    """Replace an evaluation of that name."""

    def run(self) -> list[dict[str, Any]]:
        """Score the models; the content of each evaluation's metrics.json."""
        self.check()
        find_models(self.models, self.root, self.archive)
        with terminal.loading():
            from polyp.commands.evaluate.evaluate import run

        return run(self)

    def check(self) -> None:
        """Raise InputError for values that cannot work."""
        if not self.models:
            raise InputError("give at least one RUN_OR_CHECKPOINT")
        for key in ("threshold", "missed", "confidence"):
            if not 0 < (value := getattr(self, key)) < 1:
                raise InputError(f"--{key} {value:g} must lie between 0 and 1")
        if not all(0.25 <= scale <= 4 for scale in self.scales):
            raise InputError(
                f"--scales {','.join(map('{:g}'.format, self.scales))} must lie between 0.25 and 4"
            )
        for name in self.corruptions or ():
            pick("--corruptions", name, dict.fromkeys(get_args(CorruptionName)))
        if self.corruptions is not None and self.normal:
            raise InputError("--corruptions measures the loss of Dice, which --normal frames do not have")
        if self.data is not None and self.subset != "test":
            raise InputError(
                f"--subset {self.subset} is of the run's own images, --data of others: leave one out"
            )
        options = [*["normal"] * self.normal, *self.layout]
        if options and self.data is None:
            raise InputError(f"--{options[0].replace('_', '-')} needs --data FOLDER, the folder of images")
        if self.name is not None and (Path(self.name).name != self.name or self.name in ("", "..")):
            raise InputError(f"--name {self.name} must be a single folder's name")
        if self.data is not None and not Path(self.data).expanduser().is_dir():
            raise InputError(f"--data {self.data} is not a folder")

    def folder_name(self, test_set: str) -> str:
        """The name of the evaluation's folder: the test set, and the options that are not the default."""
        parts = {
            test_set: True,
            "tta": self.tta,
            f"scales-{'-'.join(map('{:g}'.format, self.scales))}": self.scales != (1.0,),
            "corruptions": self.corruptions is not None,
            self.compute: self.compute != "exact",
            f"threshold-{self.threshold:g}": self.threshold != 0.5,
            f"ensemble-of-{len(self.models)}": len(self.models) > 1,
        }
        return "_".join(part for part, is_set in parts.items() if is_set)
