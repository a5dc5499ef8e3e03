"""What a network predicts of an image: probabilities, the mask at a threshold, and the polyps in it."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from polyp.images import SPECK


@dataclass(frozen=True)
class Polyp:
    """A connected component of a predicted mask; positions are in pixels from the image's upper left corner.

    Attributes:
        left, top, width, height: the smallest box around it.
        pixels: its area.
        share: its area as a share of the image's pixels, 0-1.
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

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels."""
        return self.left, self.top, self.width, self.height

    @property
    def area(self) -> int:
        """In pixels."""
        return self.pixels


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
        """The polyps, the largest first; specks (`polyp.images.SPECK`) are left out."""
        return find_polyps(self.probability, self.threshold)

    @property
    def labels(self) -> list[tuple[int, int, str]]:
        """Of each polyp the left and top of its box, its number from 1 on, and its probability."""
        return [
            (polyp.left, polyp.top, f"{number}: {polyp.probability:.2f}")
            for number, polyp in enumerate(self.polyps, start=1)
        ]

    @property
    def uncertainty(self) -> float:
        """1 minus the probability of the least certain polyp; without polyps the largest of a pixel."""
        if self.polyps:
            return 1 - min(polyp.probability for polyp in self.polyps)
        return float(self.probability.max())


def compute_mask(probability: np.ndarray, threshold: float) -> np.ndarray:
    """The mask (H, W) uint8, 255 where the probability (H, W) is at least the threshold, else 0."""
    return np.where(probability >= threshold, np.uint8(255), np.uint8(0))


def find_polyps(probability: np.ndarray, threshold: float) -> list[Polyp]:
    """The polyps of an image, the largest first; specks (`polyp.images.SPECK`) are left out.

    Args:
        probability: (H, W) in 0-1.
        threshold: a pixel is polyp from this probability on.
    """
    mask = (probability >= threshold).view(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)  # of all polyps: only these pixels are searched
    if not width:
        return []
    region = np.s_[y : y + height, x : x + width]
    probability = probability[region]
    _, labels, stats, centroids = cv2.connectedComponentsWithStatsWithAlgorithm(
        mask[region], connectivity=8, ltype=cv2.CV_32S, ccltype=cv2.CCL_GRANA
    )
    polyps = []
    for label, (left, top, width, height, pixels) in enumerate(stats.tolist()):
        if label > 0 and pixels >= SPECK * mask.size:  # 0 is the background
            box = np.s_[top : top + height, left : left + width]
            mean, *_ = cv2.mean(probability[box], (labels[box] == label).astype(np.uint8))
            centre = (centroids[label] + (x, y)).tolist()
            polyps.append(Polyp(left + x, top + y, width, height, pixels, pixels / mask.size, mean, *centre))
    return sorted(polyps, key=lambda polyp: -polyp.pixels)
