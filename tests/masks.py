"""Masks and predictions that are easy to get wrong."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (29, 41)


def disc(row: float, column: float, radius: float, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """(H, W) bool."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def odd_masks() -> dict[str, np.ndarray]:
    """(H, W) bool each."""
    pixel, corner, edge = np.zeros((3, *SHAPE), dtype=bool)
    pixel[11, 17] = corner[-1, -1] = edge[:, -1] = True
    return {
        "empty": np.zeros(SHAPE, dtype=bool),
        "full": np.ones(SHAPE, dtype=bool),
        "one pixel": pixel,
        "corner pixel": corner,
        "last column": edge,
        "disc": disc(14, 20, 8),
        "disc over the border": disc(2, 39, 9),
        "ring": disc(14, 20, 11) & ~disc(14, 20, 6),
        "two": disc(8, 9, 5) | disc(20, 30, 6),
        "noise": np.random.default_rng(0).random(SHAPE) < 0.4,
    }


def predictions(count: int = 12) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probability float32 and truth uint8, (H, W), the same at each call: odd masks, then random blobs."""
    random = np.random.default_rng(1)
    blobs = [gaussian_filter(random.random(SHAPE), 4) > 0.5 for _ in range(count)]
    for truth in [*odd_masks().values(), *blobs]:
        blurred = gaussian_filter(np.roll(truth, (1, 2), (0, 1)).astype(np.float32), 2)
        noise = random.random(SHAPE, dtype=np.float32)
        yield (0.8 * blurred + 0.2 * noise).clip(0, 1).astype(np.float32), truth.astype(np.uint8)
