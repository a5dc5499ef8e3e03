"""Whether a difference between two models is more than chance: of the test images, or of the seed.

A p-value for each of the two sources, and a correction for asking the question many times.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

FLIPS = 20_000


def sign_flip_p(differences: np.ndarray, flips: int = FLIPS, seed: int = 0) -> np.ndarray:
    """Two-sided paired permutation tests that the mean of differences is 0 (Good, Permutation Tests, 2000, chapter 3).

    Were two models alike, each image's difference might as well have the other sign.

    Args:
        differences: (N images, K comparisons), finite.
        flips: how many random choices of signs are tried, the same ones for all comparisons.
        seed: of the choice.

    Returns:
        (K,) p-values, 1 / (flips + 1) at the least.
    """
    data = np.asarray(differences, dtype=np.float64)
    random, observed = np.random.default_rng(seed), np.abs(data.sum(axis=0)) * (1 - 1e-9)
    rows = max(1, 10_000_000 // max(1, len(data)))  # at a time: bounds the memory for any number of images
    reached = np.ones(data.shape[1])
    for start in range(0, flips, rows):
        signs = 2.0 * random.integers(2, size=(min(rows, flips - start), len(data))) - 1
        reached += (np.abs(signs @ data) >= observed).sum(axis=0)
    return reached / (flips + 1)


def seed_noise(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """The standard deviation between seeds, pooled over groups of runs that differ in their seed alone.

    Args:
        groups: the results of each configuration, a number per seed; those with a single seed tell nothing.

    Returns:
        The standard deviation and its degrees of freedom; None if no configuration has two seeds.
    """
    several = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return (squares / freedom) ** 0.5, freedom


def seed_margin(noise: tuple[float, int], ours: int, theirs: int, confidence: float = 0.95) -> float:
    """How far the means of so many seeds each may lie apart by chance: Student's t x the difference's standard error.

    Args:
        noise: of `seed_noise`.
        ours, theirs: the numbers of seeds.
        confidence: how often chance stays within the margin.
    """
    deviation, freedom = noise
    return float(stats.t.ppf((1 + confidence) / 2, freedom) * deviation * (1 / ours + 1 / theirs) ** 0.5)


def seed_p(difference: float, noise: tuple[float, int], ours: int, theirs: int) -> float:
    """Two-sided p-value of a difference between means over seeds, by Student's t with the pooled noise."""
    deviation, freedom = noise
    error = deviation * (1 / ours + 1 / theirs) ** 0.5
    if error == 0:
        return float(difference == 0)
    return float(2 * stats.t.sf(abs(difference) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics, 1979).

    Whoever calls those below 5 % a difference is wrong even once in at most 5 % of such comparisons.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(order)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
