"""The loss of Dice on corrupted test images, by kind and severity, as in ImageNet-C.

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019. Endoscopes cause these corruptions; the severities of blur, noise and JPEG are ImageNet-C's.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np

from polyp.commands.evaluate.scoring import Image
from polyp.commands.evaluate.testsets import TestSet
from polyp.data.pairs import Pair
from polyp.inference.predictor import Predictor
from polyp.report import pictures
from polyp.report.charts import SERIES, Chart, label_right, make_axes, styled
from polyp.report.html import Page
from polyp.report.tables import Column, Table

CORRUPTIONS_FILE = "corruptions.csv"
SEVERITIES = 5
PICTURE_SEVERITY = 3
HEIGHT = 320  # pixels of a picture


class Corruption(NamedTuple):
    """A kind of corruption, as a transform of albumentations that applies to the image and its mask."""

    meaning: str  # and the unit of the strengths
    strengths: tuple[float, ...]  # of the five severities
    build: Callable[[Any, tuple[int, int], np.random.Generator], A.BasicTransform]
    """The transform, from the strength, the height and width of the image, and a random generator."""


def _blur(sigma: float, shape: tuple[int, int], random: np.random.Generator) -> A.BasicTransform:
    return A.GaussianBlur(0, (sigma * min(shape) / 224,) * 2, p=1)


def _brighten(factor: float, shape: tuple[int, int], random: np.random.Generator) -> A.BasicTransform:
    return A.MultiplicativeNoise((factor, factor), p=1)


def _tint(shift: float, shape: tuple[int, int], random: np.random.Generator) -> A.BasicTransform:
    red = shift * random.choice([-1, 1])  # warmer or colder
    return A.RGBShift((red, red), (0, 0), (-red, -red), p=1)


def _reflect(share: float, shape: tuple[int, int], random: np.random.Generator) -> A.BasicTransform:
    """Draw white ellipses with soft edges until they cover a share of the image, as wet tissue reflects."""
    height, width = shape
    light = np.zeros(shape, np.uint8)
    while np.count_nonzero(light) < share * light.size:
        centre = int(random.integers(width)), int(random.integers(height))
        axes = np.maximum(1, random.uniform(0.005, 0.04, 2) * min(shape)).astype(int).tolist()
        cv2.ellipse(light, centre, axes, random.uniform(0, 180), 0, 360, 255, cv2.FILLED)
    opacity = cv2.GaussianBlur(light, (0, 0), min(shape) / 250)[..., None] / np.float32(255)

    def blend(image: np.ndarray, **options: Any) -> np.ndarray:
        return np.rint(image + opacity * (255 - image.astype(np.float32))).astype(np.uint8)

    return A.Lambda(image=blend)


CORRUPTIONS = {
    "blur": Corruption("Gaussian blur, sigma in 1/224 of the shorter side", (1, 2, 3, 4, 6), _blur),
    "noise": Corruption(
        "Gaussian noise, standard deviation of values in 0-1",
        (0.08, 0.12, 0.18, 0.26, 0.38),
        lambda deviation, *_: A.GaussNoise((deviation, deviation), p=1),
    ),
    "jpeg": Corruption(
        "JPEG compression, quality",
        (25, 18, 15, 10, 7),
        lambda quality, *_: A.ImageCompression("jpeg", (quality, quality), p=1),
    ),
    "dark": Corruption("too dark, factor of the values", (0.7, 0.5, 0.35, 0.25, 0.15), _brighten),
    "bright": Corruption("too bright, factor of the values", (1.2, 1.4, 1.7, 2, 2.5), _brighten),
    "colour": Corruption(
        "colour cast, red and blue shifted in opposite directions, of 255", (10, 20, 30, 45, 60), _tint
    ),
    "highlights": Corruption(
        "specular highlights, share of the image", (0.01, 0.02, 0.04, 0.07, 0.12), _reflect
    ),
    "view": Corruption(
        "smaller field of view, the image shrunk by a factor inside of a black frame",
        (0.9, 0.8, 0.7, 0.6, 0.5),
        lambda scale, *_: A.Affine(scale=(scale, scale), border_mode=cv2.BORDER_CONSTANT, p=1),
    ),
}
"""The corruptions by name. Only `view` changes the mask as well."""


@dataclass(frozen=True)
class CorruptedSet(TestSet):
    """A test set whose images are corrupted when they are read, in the same way each time."""

    corruption: str = ""  # a name in `CORRUPTIONS`
    severity: int = 1  # 1 to 5

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """A corrupted image (H, W, 3) uint8 RGB and its mask (H, W) uint8."""
        image, mask = super().read(pair)
        corruption = CORRUPTIONS[self.corruption]
        # The seed is the same for all severities, so that a higher one only adds highlights.
        random = np.random.default_rng(zlib.crc32(f"{self.corruption} {pair.stem}".encode()))
        transform = corruption.build(corruption.strengths[self.severity - 1], mask.shape, random)
        transform.set_random_seed(int(random.integers(2**32)))
        result = transform(image=image, mask=mask)
        return result["image"], result["mask"]


def corrupt_set(test_set: TestSet, corruption: str, severity: int) -> CorruptedSet:
    """The test set with corrupted images."""
    name = f"{test_set.name}, {corruption} {severity} of {SEVERITIES}"
    return CorruptedSet(**vars(test_set) | {"name": name}, corruption=corruption, severity=severity)


def score_corruptions(
    test_set: TestSet,
    images: Sequence[Image],
    names: Sequence[str],
    score: Callable[[TestSet], Sequence[float]],
) -> list[dict[str, Any]]:
    """A row for each corruption and severity: the mean Dice, and its loss relative to the scored `images`.

    Args:
        names: of `CORRUPTIONS`; empty for all of them.
        score: computes the Dice of each image of a test set.
    """
    clean_dice = np.mean([image.dice for image in images])
    rows = []
    for name in dict.fromkeys(names or CORRUPTIONS):
        for severity, strength in enumerate(CORRUPTIONS[name].strengths, 1):
            dice = float(np.mean(score(corrupt_set(test_set, name, severity))))
            row = {"corruption": name, "severity": severity, "strength": strength, "n": len(images)}
            rows.append({**row, "dice": dice, "loss": float(clean_dice - dice)})
    return rows


def print_corruptions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the loss of Dice by corruption and severity."""
    print("\nLoss of Dice by corruption and severity")
    _build_table(rows).print()


def _build_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The loss of Dice: a row for each corruption, a column for each severity, and their mean."""
    severities = [str(severity) for severity in range(1, SEVERITIES + 1)]
    lines = []
    for name in CORRUPTIONS:
        if losses := [row["loss"] for row in rows if row["corruption"] == name]:
            cells = dict(zip(severities, losses, strict=True))
            lines.append({"corruption": name, **cells, "mean": np.mean(losses)})
    columns = [Column(name, format=".3f") for name in (*severities, "mean")]
    return Table(lines, [Column("corruption"), *columns])


def add_corruptions(
    page: Page,
    rows: Sequence[Mapping[str, Any]],
    test_set: TestSet,
    predictors: Mapping[str, Predictor],
    threshold: float,
) -> None:
    """Add a section with a table, a chart, and a picture of each corruption, all of the same image."""
    pair = test_set.pairs[0]
    page.section(
        "Corruptions",
        "How much Dice falls when the images are corrupted, by severity. The pictures show severity "
        f"{PICTURE_SEVERITY}: the image with the outlines of both; truth; prediction.",
    )
    page.table(_build_table(rows))
    page.charts([_plot_dice(rows)])
    gallery = []
    for row in rows:
        if row["severity"] == PICTURE_SEVERITY:
            name = row["corruption"]
            pixels, mask = corrupt_set(test_set, name, PICTURE_SEVERITY).read(pair)
            panel = pictures.panel(pixels, mask, predictors[pair.stem].predict(pixels), threshold, HEIGHT)
            gallery.append((panel, f"{name}: {CORRUPTIONS[name].meaning}: {row['strength']:g}"))
    page.gallery(gallery, pictures.LEGEND, "wide")


@styled
def _plot_dice(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Dice by severity, a line for each corruption; severity 0 is without corruption."""
    figure, axes = make_axes("severity", "Dice", (5.0, 3.2))
    ends = []
    for index, name in enumerate(dict.fromkeys(row["corruption"] for row in rows)):
        group = [row for row in rows if row["corruption"] == name]
        dice = [group[0]["dice"] + group[0]["loss"], *(row["dice"] for row in group)]
        colour, style = SERIES[index % len(SERIES)], "--" if index >= len(SERIES) else "-"
        axes.plot(range(SEVERITIES + 1), dice, f"o{style}", color=colour, ms=3)
        ends.append((dice[-1], name, colour))
    axes.set(xlim=(0, SEVERITIES), ylim=(None, 1))
    label_right(axes, ends)
    return Chart("corruptions", figure, "Mean Dice by severity; 0 are the images as they are.")
