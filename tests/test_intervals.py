import math

import numpy as np
import pytest
import scipy.stats

from polyp.metrics import intervals
from polyp.metrics.intervals import bootstrap_interval, bootstrap_intervals


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).beta(8, 1, size=120)
    low, high = bootstrap_interval(values)
    reference = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2)
    assert (low, high) == pytest.approx(
        tuple(reference.confidence_interval), abs=0.1 * reference.standard_error
    )
    assert low < values.mean() < high


def test_interval_is_repeatable_and_grows_with_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values.tolist())
    monkeypatch.setattr(intervals, "CONFIDENCE", 0.5)
    narrow = bootstrap_interval(values)
    assert low < narrow[0] < narrow[1] < high


def test_interval_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    monkeypatch.setattr(intervals, "RESAMPLES", 1_000)
    low, high = bootstrap_interval(values)  # in ten pieces
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 100, rel=0.1)


def test_interval_of_few_images() -> None:
    assert all(math.isnan(end) for end in bootstrap_interval([0.9]))
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [[0.5, 0.6]]])
def test_interval_of_nonsense(values: list[float]) -> None:
    with pytest.raises(ValueError):
        bootstrap_interval(values)


def test_a_ratio_of_means_agrees_with_scipy() -> None:
    random = np.random.default_rng(3)
    whole = random.integers(1, 4, size=150).astype(float)
    part = random.binomial(whole.astype(int), 0.8).astype(float)

    def ratios(means: np.ndarray) -> np.ndarray:
        return means[:, :1] / means[:, 1:]

    (low, high) = bootstrap_intervals(np.stack([part, whole], axis=1), ratios)[0]
    reference = scipy.stats.bootstrap(
        (part, whole), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, method="percentile", rng=4
    )
    assert (low, high) == pytest.approx(
        tuple(reference.confidence_interval), abs=0.2 * reference.standard_error
    )


def test_columns_share_their_draws_with_a_single_one() -> None:
    columns = np.random.default_rng(0).random((40, 3))
    bounds = bootstrap_intervals(
        columns, lambda means: np.concatenate([means, means.max(1, keepdims=True)], axis=1)
    )
    assert bounds.shape == (4, 2)
    assert bounds[1] == pytest.approx(bootstrap_interval(columns[:, 1]))
    assert (bounds[3] >= bounds[:3].max(0)).all()


def test_resamples_without_a_value_are_left_out() -> None:
    rare = np.zeros((20, 2))
    rare[0] = 1  # a third of the resamples lack the only image that counts

    def ratios(means: np.ndarray) -> np.ndarray:
        return np.divide(
            means[:, :1], means[:, 1:], out=np.full((len(means), 1), np.nan), where=means[:, 1:] > 0
        )

    assert bootstrap_intervals(rare, ratios).tolist() == [[1, 1]]
    assert np.isnan(bootstrap_intervals(np.zeros((20, 2)), ratios)).all()
