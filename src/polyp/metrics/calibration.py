"""The calibration of probabilities, and the threshold that limits the share of missed polyp pixels.

The threshold comes from an image's levels: the number of its pixels in each of 256 steps of probability. A
step is 1/256, since floating-point numbers times 256 are exact: a pixel is in step k or above if its
probability >= k/256.
"""

from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.arange(256) / 256
"""The thresholds at which an image's levels determine its prediction."""

BINS = 16
"""Of equal width in probability, for the reliability diagram."""

DEFINITIONS = {
    "brier": "Mean (probability - truth)² over the pixels, per image, mean over images (Brier, 1950).",
    "ece": (
        "Expected calibration error (Naeini et al., 2015): |mean probability - share of polyp| over the "
        f"pixels of each of {BINS} bins of equal width, weighted by the bin's share of the pixels; each "
        "image counts the same."
    ),
}

MISSED = (
    "The share of the polyp's pixels whose probability is below the threshold, per image, mean over the "
    "images that have a polyp."
)


def histograms(probability: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The levels of one image, for the choice of a threshold, and its reliability, for the calibration.

    Args:
        probability: of its pixels, float32 in [0, 1], of any shape.
        truth: bool, of the same shape.

    Returns:
        levels: (2, 256) int64, the background's and the polyp's pixels in steps [k/256, (k+1)/256); the last
            includes 1.
        reliability: (3, BINS) float64, for each bin of probability: the pixels in it, the sum of their
            probabilities, and those that are polyp, each divided by the number of the image's pixels. The
            mean over images is the reliability diagram.
    """
    steps = np.minimum(probability * 256, 255).astype(np.uint8)
    levels = np.bincount((steps + 256 * truth.astype(np.uint16)).ravel(), minlength=512).reshape(2, 256)
    background, polyp = levels.reshape(2, BINS, -1).sum(-1)
    sums = np.bincount((steps // (256 // BINS)).ravel(), probability.ravel(), BINS)
    return levels, np.stack([background + polyp, sums, polyp]) / truth.size


def calibration_error(diagram: np.ndarray) -> np.ndarray:
    """Expected calibration error, (…), of mean reliabilities (…, 3, BINS)."""
    return np.abs(diagram[..., 1, :] - diagram[..., 2, :]).sum(-1)


def missed_shares(counts: np.ndarray) -> np.ndarray:
    """The share of the polyp's pixels that each of THRESHOLDS misses.

    Args:
        counts: (…, 2, 256), the levels of images that have a polyp.

    Returns:
        (…, 256) float64, 0 at threshold 0 and never falling.
    """
    polyp = np.asarray(counts, dtype=np.float64)[..., 1, :]
    below = np.cumsum(polyp, axis=-1) - polyp
    return below / polyp.sum(-1, keepdims=True)


@dataclass(frozen=True)
class RiskControl:
    """A threshold that limits the missed share of a polyp's pixels."""

    threshold: float  # a pixel is polyp if its probability >= threshold
    share: float  # the limit of the missed share in the mean over images
    confidence: float  # the probability that the limit holds, over draws of the images it is chosen on
    missed: float  # the mean missed share of these images
    images: int  # their number


def risk_threshold(missed: np.ndarray, share: float, confidence: float) -> RiskControl | None:
    """Choose the highest threshold whose expected missed share is at most `share`, with `confidence`.

    Risk-controlling prediction sets (Bates et al., 2021, J. ACM 68(6)): thresholds are tested from the lowest
    up to the first that fails; since the missed share never falls, no correction for the number of tests is
    needed. The test is theirs by betting (after Waudby-Smith & Ramdas), which unlike Hoeffding-Bentkus
    profits if images miss about the same. It depends on the order of the images, which is drawn with a fixed
    seed.

    Args:
        missed: (N, 256), `missed_shares` of N images with polyps, from the same source as future images.
        share: between 0 and 1, the mean missed share per image that is allowed.
        confidence: between 0 and 1.

    Returns:
        None if every threshold above 0 fails: `share` is too strict for so few images.

    Raises:
        ValueError: no images, numbers outside [0, 1], or shares that fall with the threshold.
    """
    missed = np.asarray(missed, dtype=np.float64)
    if missed.ndim != 2 or missed.shape[1] != len(THRESHOLDS) or len(missed) == 0:
        raise ValueError(f"need (N, 256) missed shares of at least one image, got {missed.shape}")
    if not ((missed >= 0) & (missed <= 1)).all() or (np.diff(missed) < 0).any():
        raise ValueError("missed shares must lie in [0, 1] and never fall with the threshold")
    for name, value in (("share", share), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    shuffled = np.random.default_rng(0).permutation(missed)
    passed = _log_gains(shuffled, share, confidence) > np.log(1 / (1 - confidence))
    best = int(np.cumprod(passed).sum()) - 1  # the last of those before the first that fails
    if best < 1:
        return None
    return RiskControl(float(THRESHOLDS[best]), share, confidence, float(missed[:, best].mean()), len(missed))


def _log_gains(losses: np.ndarray, share: float, confidence: float) -> np.ndarray:
    """Log of the largest gain of bets against "the mean loss is above `share`", by column of `losses` (N, K).

    If that is true, the gain exceeds 1 / (1 - confidence) with probability 1 - confidence at most.
    """
    count = np.arange(1, len(losses) + 1)[:, None]
    mean = (0.5 + losses.cumsum(0)) / (1 + count)
    variance = (0.25 + ((losses - mean) ** 2).cumsum(0)) / (1 + count)
    variance = np.vstack([np.full(losses.shape[1], 0.25), variance[:-1]])  # a bet knows the images before it
    bets = np.minimum(1, np.sqrt(2 * np.log(1 / (1 - confidence)) / (len(losses) * variance)))
    gains: np.ndarray = np.log1p(-bets * (losses - share)).cumsum(0).max(0)
    return gains
