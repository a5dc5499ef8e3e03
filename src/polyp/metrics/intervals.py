"""Bootstrap intervals of numbers that are made of means over images."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
"""The interval's share of the resampled means."""

RESAMPLES = 10_000
"""The number of draws of N of the N images, with replacement."""


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images (Efron & Tibshirani, 1993, chapter 13).

    How much the mean would differ with other images of the same kind; not with another seed of the training.
    For two runs on the same images, pass the differences per image. The draws have a fixed seed.

    Args:
        values: one finite number per image.

    Returns:
        (low, high); (nan, nan) for a single image, which says nothing about the spread.

    Raises:
        ValueError: no values, or values that are not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"need one finite number per image, got {data.size} of shape {data.shape}")
    low, high = bootstrap_intervals(data[:, None], lambda means: means)[0]
    return float(low), float(high)


def bootstrap_intervals(columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`bootstrap_interval` of several numbers at once, each a function of the means of columns over images.

    All numbers share the draws. A ratio of sums, say, is the ratio of two columns' means.

    Args:
        columns: (N, K), finite: K numbers for each of N images.
        statistic: from resampled means (R, K) to the numbers (R, S). NaN marks a resample in which a number
            does not exist (no polyp among the images drawn, for example); it is left out.

    Returns:
        (S, 2), low and high; NaN for a single image and for numbers that no resample has.

    Raises:
        ValueError: as for `bootstrap_interval`.
    """
    columns = np.asarray(columns, dtype=np.float64)
    if columns.ndim != 2 or columns.size == 0 or not np.isfinite(columns).all():
        reason = f"got {columns.size} of shape {columns.shape}"
        raise ValueError(f"need one finite number per image and column, {reason}")
    count = len(columns)
    if count == 1:
        return np.full((statistic(columns).shape[1], 2), np.nan)
    random = np.random.default_rng(0)
    rows = max(1, 1_000_000 // max(columns.shape))  # at a time: bounds the memory for any number of images
    numbers = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        draws = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        numbers.append(statistic(weights.astype(np.float64) @ columns / count))
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    valid = [row[~np.isnan(row)] for row in np.concatenate(numbers).T]
    return np.stack([np.quantile(row, ends) if row.size else [np.nan] * 2 for row in valid])


def summarise_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Means over images, as JSON.

    Args:
        rows: at least one, a number by each name.
        names: of the numbers.

    Returns:
        n; for each name its mean and, as NAME_interval, its `bootstrap_interval`, None for a single image.
    """
    summary: dict[str, Any] = {"n": len(rows)}
    for name in names:
        values = [row[name] for row in rows]
        summary[name] = float(np.mean(values))
        summary[f"{name}_interval"] = list(bootstrap_interval(values)) if len(rows) > 1 else None
    return summary


def summarise_sources(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`summarise_rows` of dice and iou by source; empty if the rows have no source, as where there is one."""
    groups = defaultdict(list)
    for row in rows:
        if "source" in row:
            groups[row["source"]].append(row)
    return {source: summarise_rows(group, ["dice", "iou"]) for source, group in groups.items()}
