"""The polyps that a network has found in an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import find_objects

from polyp.images import components


@dataclass(frozen=True)
class Polyp:
    """A connected component of a predicted mask; positions are in pixels from the image's upper left corner.

    Attributes:
        left, top, width, height: the smallest box around it.
        pixels: its area.
        share: of the image's pixels, 0-1.
        probability: the mean over its pixels, 0-1.
        x, y: its centroid.
    """

    left: int
    top: int
    width: int
    height: int
    pixels: int
    share: float
    probability: float
    x: float
    y: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted of an image.

    Attributes:
        probability: (H, W) float32 in 0-1, of the image's size.
        threshold: a pixel is polyp from this probability on.
    """

    probability: np.ndarray
    threshold: float

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) bool, true where there is a polyp; specks included."""
        return self.probability >= self.threshold

    @cached_property
    def polyps(self) -> list[Polyp]:
        """The polyps, the largest first; specks (`polyp.images.SPECK`) are none."""
        return find(self.probability, self.threshold)


def mask(probability: np.ndarray, threshold: float) -> np.ndarray:
    """A mask (H, W) uint8, 255 where the probability (H, W) is at least the threshold, else 0."""
    return np.where(probability >= threshold, np.uint8(255), np.uint8(0))


def find(probability: np.ndarray, threshold: float) -> list[Polyp]:
    """The polyps of an image, the largest first; specks (`polyp.images.SPECK`) are none.

    Args:
        probability: (H, W) in 0-1.
        threshold: a pixel is polyp from this probability on.
    """
    _, labels = components(mask(probability, threshold))
    found = []
    for label, box in enumerate(find_objects(labels), start=1):
        inside = labels[box] == label
        in_rows, in_columns = inside.sum(1), inside.sum(0)
        pixels = int(in_rows.sum())
        top, left = box[0].start, box[1].start
        found.append(
            Polyp(
                left=left,
                top=top,
                width=box[1].stop - left,
                height=box[0].stop - top,
                pixels=pixels,
                share=pixels / labels.size,
                probability=float(probability[box].mean(where=inside, dtype=np.float64)),
                x=left + float(in_columns @ np.arange(len(in_columns))) / pixels,
                y=top + float(in_rows @ np.arange(len(in_rows))) / pixels,
            )
        )
    return sorted(found, key=lambda polyp: -polyp.pixels)


def mean_probability(found: Sequence[Polyp]) -> float:
    """Over the pixels of all polyps; there is at least one."""
    return sum(polyp.probability * polyp.pixels for polyp in found) / sum(polyp.pixels for polyp in found)
