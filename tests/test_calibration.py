import numpy as np
import pytest
import torch
from masks import predictions
from torchmetrics.classification import BinaryCalibrationError

from polyp.metrics.calibration import (
    BINS,
    THRESHOLDS,
    calibration_error,
    histograms,
    missed_shares,
    risk_threshold,
)

IMAGES = list(predictions())


def test_levels_are_the_counts_at_each_threshold() -> None:
    for probability, truth in IMAGES:
        levels, _ = histograms(probability, truth == 1)
        at_least = levels[:, ::-1].cumsum(1)[:, ::-1]
        for k, threshold in enumerate(THRESHOLDS):
            assert at_least[0, k] == ((probability >= threshold) & (truth == 0)).sum()
            assert at_least[1, k] == ((probability >= threshold) & (truth == 1)).sum()


def test_steps_are_exact_next_to_a_threshold() -> None:
    exact = THRESHOLDS.astype(np.float32)[1:]
    below = np.nextafter(exact, np.float32(0))
    polyp = np.ones((1, 255), dtype=bool)
    assert histograms(exact[None], polyp)[0][1].tolist() == [0] + [1] * 255
    assert histograms(below[None], polyp)[0][1].tolist() == [1] * 255 + [0]
    assert histograms(np.ones((2, 2), dtype=np.float32), np.ones((2, 2), dtype=bool))[0][1, -1] == 4


def test_calibration_error_agrees_with_torchmetrics() -> None:
    for probability, truth in IMAGES:
        diagram = histograms(probability, truth == 1)[1]
        independent = BinaryCalibrationError(n_bins=BINS)(
            torch.tensor(probability).ravel(), torch.tensor(truth).ravel()
        )
        assert calibration_error(diagram) == pytest.approx(independent.item(), abs=1e-5)
        assert diagram.sum(1) == pytest.approx([1, probability.mean(dtype=float), truth.mean()])


def test_missed_shares_are_one_minus_recall() -> None:
    for probability, truth in IMAGES:
        if truth.any():
            missed = missed_shares(histograms(probability, truth == 1)[0])
            assert missed == pytest.approx([(probability[truth == 1] < t).mean() for t in THRESHOLDS])


# ---- risk control ----


def spread(random: np.random.Generator, count: int) -> np.ndarray:
    """Images that miss more or less, (N, 256): x^a at threshold x."""
    return np.asarray(THRESHOLDS ** random.uniform(1, 6, size=(count, 1)))


def all_or_nothing(random: np.random.Generator, count: int) -> np.ndarray:
    """Images whose polyp is found whole or missed whole, the hardest to vouch for."""
    return (random.random((count, 1)) < THRESHOLDS).astype(float)


@pytest.mark.parametrize(("images", "risk"), [(spread, 0.5), (all_or_nothing, 0.3)])
def test_the_share_is_kept_as_often_as_is_said_and_not_by_far(images, risk: float) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(0)
    truth = images(random, 20_000).mean(0)  # what is missed in the long run
    share, confidence, draws = 0.2, 0.9, 300
    chosen = [risk_threshold(images(random, 100), share, confidence) for _ in range(draws)]
    risks = np.array([truth[int(256 * control.threshold)] if control else 0 for control in chosen])
    violations = (risks > share).sum()
    assert violations <= draws * (1 - confidence) + 3 * np.sqrt(draws * confidence * (1 - confidence))
    assert risks.mean() > risk * share


def test_the_control_says_what_it_was_chosen_on() -> None:
    missed = spread(np.random.default_rng(0), 100)
    control = risk_threshold(missed, 0.2, 0.9)
    assert control is not None and (control.share, control.confidence, control.images) == (0.2, 0.9, 100)
    assert control.missed == missed[:, int(256 * control.threshold)].mean() < 0.2
    stricter, surer = risk_threshold(missed, 0.1, 0.9), risk_threshold(missed, 0.2, 0.99)
    assert stricter is not None and stricter.threshold < control.threshold
    assert surer is not None and surer.threshold < control.threshold


def test_what_cannot_be_vouched_for() -> None:
    missed = spread(np.random.default_rng(0), 100)
    assert risk_threshold(missed[:2], 0.05, 0.95) is None
    blind = np.ones((1000, 256)) * (THRESHOLDS > 0)
    assert risk_threshold(blind, 0.5, 0.9) is None
    perfect = risk_threshold(np.zeros((1000, 256)), 0.05, 0.95)
    assert perfect is not None and perfect.threshold == THRESHOLDS[-1]


@pytest.mark.parametrize(
    ("missed", "share", "confidence"),
    [
        (np.empty((0, 256)), 0.1, 0.9),
        (np.zeros((5, 100)), 0.1, 0.9),
        (np.full((5, 256), np.nan), 0.1, 0.9),
        (np.tile(1 - THRESHOLDS, (5, 1)), 0.1, 0.9),
        (np.zeros((5, 256)), 10, 0.9),
        (np.zeros((5, 256)), 0.1, 95),
    ],
)
def test_nonsense_is_refused(missed: np.ndarray, share: float, confidence: float) -> None:
    with pytest.raises(ValueError):
        risk_threshold(missed, share, confidence)
