"""Small drawn data sets in the layouts that people have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE = (40, 48)


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8; pictures of different seeds have nothing in common."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def polyp(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) uint8 in {0, 1}: a disc whose place and radius depend on the seed."""
    radius = 4 + seed % 7
    centre = (12 + seed * 5 % (size[1] - 24), 12 + seed * 3 % (size[0] - 24))
    return cv2.circle(np.zeros(size, np.uint8), centre, radius, 1, -1)


def write(path: Path, pixels: np.ndarray, palette: Sequence[int] = (), **options: Any) -> Path:
    """Write an image of any format and name; a mask in {0, 1} as 0 and 255.

    Args:
        path: whose folders are made.
        pixels: (H, W) or (H, W, 3).
        palette: red, green and blue of each index, one after the other.
        options: of Pillow's `save`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    image.save(path, **options)
    return path


def lay_out(root: Path, *names: tuple[str, str | None]) -> Path:
    """Write an image and a mask for each pair of paths below a folder; no mask for None."""
    for seed, (image, mask) in enumerate(names):
        write(root / image, picture(seed))
        if mask is not None:
            write(root / mask, polyp(seed) * 255)
    return root


def numbered(image: str, mask: str, numbers: Sequence[Any] = (1, 2, 3)) -> list[tuple[str, str]]:
    """Names for `lay_out`, with {} for a number."""
    return [(image.format(number), mask.format(number)) for number in numbers]
