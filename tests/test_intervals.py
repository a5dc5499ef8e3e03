import math

import numpy as np
import pytest
import scipy.stats

from polyp.metrics.intervals import bootstrap_interval


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).beta(8, 1, size=120)
    low, high = bootstrap_interval(values)
    reference = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2)
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.1 * reference.standard_error)
    assert low < values.mean() < high


def test_interval_is_repeatable_and_grows_with_confidence() -> None:
    values = np.random.default_rng(0).random(30)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values.tolist()) != bootstrap_interval(values, seed=1)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_interval_of_many_images() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    low, high = bootstrap_interval(values, resamples=1_000)  # in ten pieces
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 100, rel=0.1)


def test_interval_of_few_images() -> None:
    assert all(math.isnan(end) for end in bootstrap_interval([0.9]))
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "confidence"), [([], 0.95), ([0.5, math.nan], 0.95), ([[0.5, 0.6]], 0.95), ([0.5, 0.6], 95.0)]
)
def test_interval_of_nonsense(values: list[float], confidence: float) -> None:
    with pytest.raises(ValueError):
        bootstrap_interval(values, confidence)
