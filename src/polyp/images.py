"""Sizes of images, and the polyps of a mask: one way for data, model and everything that uses them."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor
from torch.nn import functional as F

from polyp.errors import InputError


def square(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two.

    Raises:
        InputError: not one or two numbers of at least 32.
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side >= 32 for side in size):
        raise InputError(f"data.image_size={image_size} must be one number or [height, width], each at least 32 pixels")
    return size


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) uint8 at another (height, width): bilinear, averaging where it shrinks."""
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


SPECK = 0.0002
"""Share of an image below which a connected component of a mask is no polyp but noise, as JPEG masks have it."""


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The polyps of a mask: its connected components, touching corners included, without specks (see `SPECK`).

    The largest component always counts, so that a mask with any polyp pixel has a polyp.

    Args:
        mask: (H, W), polyp where it is not 0.

    Returns:
        (H, W) int32 with 0 for the background and specks and 1, 2, ... for the polyps, the largest first; their count.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-areas, kind="stable")
    kept = [number for rank, number in enumerate(order) if rank == 0 or areas[number] >= SPECK * mask.size]
    names = np.zeros(len(areas) + 1, np.int32)
    names[np.array(kept, int) + 1] = np.arange(1, len(kept) + 1)
    return names[labels], len(kept)
