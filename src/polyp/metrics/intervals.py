"""How far a number can be trusted that is a mean over so many images."""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images (Efron & Tibshirani, 1993, chapter 13).

    Tells how far the mean would move with other images of the same kind; not with another seed of the training. For two
    runs on the same images give the differences per image.

    Args:
        values: one finite number per image.
        confidence: the interval's share of the resampled means, between 0 and 1.
        resamples: how often n of the n images are drawn, with replacement.
        seed: the same seed gives the same interval.

    Returns:
        (low, high); (nan, nan) for a single image, which says nothing about the spread.

    Raises:
        ValueError: no values, values that are not finite, or a confidence outside (0, 1).
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"need one finite number per image, got {data.size} of shape {data.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if data.size == 1:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // data.size)  # at a time: bounds the memory for any number of images
    means = np.concatenate(
        [
            data[random.integers(data.size, size=(min(rows, resamples - start), data.size))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
