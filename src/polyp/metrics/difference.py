"""Tests of a difference between two models: is it due to the choice of test images, or to the seed?

For each, a p-value and an interval come from one test, with the same correction for the number of comparisons
(Bonferroni), so that the interval excludes 0 exactly if the p-value is below the level.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy import stats

SUBSETS = 40_000
"""The least number of subsets for a sign-flip test; up to 15 images have fewer, which are all used."""

SUBSETS_PER_COMPARISON = 1_000
"""The same for each comparison: more comparisons need values farther out in the tails."""

BLOCK = 4_000_000  # elements of a matrix in memory at a time, for any number of images


@dataclass(frozen=True)
class SignFlip:
    """The mean of paired differences, tested against 0.

    Attributes:
        value: the mean.
        interval: of the mean, with the confidence 1 - level for all comparisons together; it excludes 0
            exactly if `p` is below the level. None if there are too few images to reach the level, see
            `min_images`.
        p: two-sided p-value, corrected for the number of comparisons.
    """

    value: float
    interval: tuple[float, float] | None
    p: float


def sign_flip_tests(differences: np.ndarray, level: float = 0.05) -> list[SignFlip]:
    """Paired permutation tests that the mean of differences is 0 (Good, Permutation Tests, 2000, chapter 3).

    If two models are equal, the sign of each image's difference is random. Flipping the signs of a subset of
    the images does not lower the sum exactly if the mean over that subset is 0 or less. So the one-sided
    p-value is the share of subsets with such a mean, including the empty one. The test of another mean than 0
    counts the subsets' means up to that number, and the interval, which holds the numbers that the test does
    not reject, ends at order statistics of the subsets' means (Hartigan, JASA 64, 1969: typical values).

    Args:
        differences: (N images, K comparisons), finite.
        level: the probability of an error in any of the K comparisons.

    Returns:
        K tests.
    """
    data = np.asarray(differences, dtype=np.float64)
    images, comparisons = data.shape
    draws = max(SUBSETS, SUBSETS_PER_COMPARISON * comparisons)
    total = min(draws, 2**images)  # with the empty subset
    # The p-value for each number of means beyond 0; `tail` of them are outside the interval, at each end.
    p_values = np.minimum(1, 2 * comparisons * np.arange(1, total + 1) / total)
    tail = int((p_values < level).sum())
    rounding = 1e-12 * np.abs(data).max(axis=0)
    counts = np.zeros((2, comparisons), np.int64)
    ends = np.empty((2, 0, comparisons))
    for subsets in _list_subsets(images, total):
        means = subsets @ data / subsets.sum(axis=1, keepdims=True)
        means[np.abs(means) <= rounding] = 0
        signed = np.stack([means, -means])
        counts += (signed <= 0).sum(axis=1)
        ends = np.concatenate([ends, signed], axis=1)
        if ends.shape[1] > tail:
            ends = np.partition(ends, tail, axis=1)[:, :tail]
    return [
        SignFlip(
            float(data[:, k].mean()),
            (float(ends[0, :, k].max()), float(-ends[1, :, k].max())) if tail else None,
            float(p_values[counts[:, k].min()]),
        )
        for k in range(comparisons)
    ]


def _list_subsets(images: int, total: int) -> Iterator[np.ndarray]:
    """`total` - 1 subsets, none empty, as rows (R, images) of 0 and 1; if there are more, random ones."""
    rows = max(1, BLOCK // images)
    random = np.random.default_rng(0)
    for start in range(1, total, rows):
        numbers = np.arange(start, min(start + rows, total))
        if total == 2**images:
            yield (numbers[:, None] >> np.arange(images) & 1).astype(np.float64)
        else:
            bits = random.integers(256, size=(len(numbers), -(-images // 8)), dtype=np.uint8)
            subsets = np.unpackbits(bits, axis=1)[:, :images].astype(np.float64)
            yield np.where(subsets.any(axis=1, keepdims=True), subsets, 1)  # the empty one is counted apart


def min_images(comparisons: int, level: float = 0.05) -> int:
    """The smallest number of images with which `sign_flip_tests` can reach the level."""
    return next(images for images in count(1) if 2 * comparisons / 2**images < level)


def seed_noise(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """The standard deviation between seeds, pooled over groups of runs that differ in their seed alone.

    Args:
        groups: the results of each configuration, a number per seed; those of a single seed are ignored.

    Returns:
        The standard deviation and its degrees of freedom; None if no configuration has two seeds.
    """
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((np.asarray(group) - np.mean(group)) ** 2).sum()) for group in groups)
    return (squares / freedom) ** 0.5, freedom


def seed_margin(noise: tuple[float, int], seeds_a: int, seeds_b: int, confidence: float = 0.95) -> float:
    """The largest difference of means over seeds that is due to chance: Student's t x its standard error.

    Args:
        noise: of `seed_noise`.
        seeds_a, seeds_b: how many of each configuration.
        confidence: the probability that a difference due to chance is within the margin.
    """
    return float(stats.t.ppf((1 + confidence) / 2, noise[1]) * _standard_error(noise, seeds_a, seeds_b))


def seed_p(difference: float, noise: tuple[float, int], seeds_a: int, seeds_b: int) -> float:
    """Two-sided p-value of a difference between means over seeds, by Student's t with the pooled noise."""
    error = _standard_error(noise, seeds_a, seeds_b)
    if error == 0:
        return float(difference == 0)
    return float(2 * stats.t.sf(abs(difference) / error, noise[1]))


def _standard_error(noise: tuple[float, int], seeds_a: int, seeds_b: int) -> float:
    return float(noise[0] * (1 / seeds_a + 1 / seeds_b) ** 0.5)
