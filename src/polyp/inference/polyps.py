"""The polyps that a network has found in an image."""

from dataclasses import dataclass

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
        rows, columns = np.nonzero(labels[box] == label)
        top, left = box[0].start, box[1].start
        found.append(
            Polyp(
                left=left,
                top=top,
                width=box[1].stop - left,
                height=box[0].stop - top,
                pixels=len(rows),
                share=len(rows) / labels.size,
                probability=float(probability[box][rows, columns].mean(dtype=np.float64)),
                x=left + float(columns.mean()),
                y=top + float(rows.mean()),
            )
        )
    return sorted(found, key=lambda polyp: -polyp.pixels)
