"""Sizes of images, and the polyps of a mask: one way for data, model and everything that uses them."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor
from torch.nn import functional as F

from polyp.errors import InputError

SMALLEST, LARGEST = 32, 4096
"""Sides in pixels that networks work at. Colonoscopes record 1920 x 1080; far beyond, memory would not do."""


def square(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two.

    Raises:
        InputError: not one or two whole numbers from 32 to 4096.
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and SMALLEST <= side <= LARGEST for side in size):
        raise InputError(
            f"data.image_size={image_size} must be one number or [height, width], each {SMALLEST} to {LARGEST} pixels"
        )
    return size


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) uint8 at another (height, width): bilinear, averaging where it shrinks.

    On the CPU wherever the image is: torch resizes 8-bit integers there only.
    """
    return F.interpolate(image[None].cpu(), size=size, mode="bilinear", antialias=True)[0].to(image.device)


SPECK = 1e-4
"""Share of the image below which a connected component is no polyp. Kvasir-SEG's masks have 143 specks of a pixel or
three, which JPEG compression leaves, all below a tenth of this; the next larger component is ten times as large."""


def components(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """The polyps of a mask: its connected components, touching corners included, without specks (see `SPECK`).

    Args:
        mask: (H, W), polyp where it is not 0.

    Returns:
        How many, and (H, W) int32: 0 for the background and specks, 1 to the count for the polyps.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    counts = stats[:, cv2.CC_STAT_AREA] >= SPECK * mask.size
    counts[0] = False  # the background
    return int(counts.sum()), (np.cumsum(counts) * counts).astype(np.int32)[labels]
