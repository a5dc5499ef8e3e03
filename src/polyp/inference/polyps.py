"""The polyps that a network has found in an image."""

from dataclasses import dataclass

import numpy as np

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
    count, labels = components(mask(probability, threshold))
    found = []
    for label in range(1, count + 1):
        rows, columns = np.nonzero(labels == label)
        top, left = int(rows.min()), int(columns.min())
        found.append(
            Polyp(
                left=left,
                top=top,
                width=int(columns.max()) - left + 1,
                height=int(rows.max()) - top + 1,
                pixels=len(rows),
                share=len(rows) / labels.size,
                probability=float(probability[rows, columns].mean(dtype=np.float64)),
                x=float(columns.mean()),
                y=float(rows.mean()),
            )
        )
    return sorted(found, key=lambda polyp: -polyp.pixels)
