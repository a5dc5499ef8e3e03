"""Whether probabilities mean what they say, and the threshold that keeps what is missed under a stated share.

The threshold comes from an image's levels: how many of its pixels fall in each of 256 steps of probability. A step is
1/256, since floating-point numbers times 256 are exact: a pixel is in step k or above just where probability >= k/256.
"""

from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.arange(256) / 256
"""The thresholds at which the levels can tell what an image's prediction is."""

BINS = 16
"""Of equal width in probability, for the reliability diagram."""

DEFINITIONS = {
    "brier": "Mean (probability - truth)² over the pixels, per image, mean over images (Brier, 1950).",
    "ece": (
        "Expected calibration error (Naeini et al., 2015): |mean probability - share of polyp| over the pixels of each "
        f"of {BINS} bins of equal width, weighted by the bin's share of the pixels; each image counts the same."
    ),
}

MISSED = (
    "The share of the polyp's pixels whose probability is below the threshold, per image, mean over the images that "
    "have a polyp."
)


def histograms(probability: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What one image contributes to calibration and to the choice of a threshold.

    Args:
        probability: (H, W) float32 in [0, 1].
        truth: (H, W) bool.

    Returns:
        levels: (2, 256) int64, the background's pixels and the polyp's in steps [k/256, (k+1)/256); 1 is in the last.
        reliability: (3, BINS) float64, for each bin of probability: the pixels in it, the sum of their probabilities,
            and how many of them are polyp, each over the number of the image's pixels. The mean over images is the
            reliability diagram.
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
    """The threshold that keeps the missed polyp pixels under `share`, with `confidence`, and what it was chosen on."""

    threshold: float
    """Predict polyp where probability >= this."""
    share: float
    """Of a polyp's pixels, at most this is missed, in the mean over images like those."""
    confidence: float
    """With which that holds, over draws of the images it was chosen on."""
    missed: float
    """Mean missed share of those images."""
    images: int
    """How many they were."""


def risk_threshold(missed: np.ndarray, share: float, confidence: float) -> RiskControl | None:
    """Choose the highest threshold whose expected missed share is at most `share`, with `confidence`.

    Risk-controlling prediction sets (Bates et al., 2021, J. ACM 68(6)): thresholds are tested from the lowest up, and
    the first that cannot be vouched for ends the walk; since the missed share never falls, no correction for the number
    of tests is needed. The test is theirs by betting (after Waudby-Smith & Ramdas), which unlike Hoeffding-Bentkus
    profits where images miss about the same. It depends on the images' order, so that one is drawn with a fixed seed.

    Args:
        missed: (N, 256), `missed_shares` of N images with polyps, drawn like those to come and apart from them.
        share: between 0 and 1, the missed share per image that is allowed in the mean.
        confidence: between 0 and 1.

    Returns:
        The control; None if no threshold above 0 can be vouched for: then `share` is too strict for so few images.

    Raises:
        ValueError: no images, numbers outside [0, 1], or shares that fall with the threshold.
    """
    missed = np.asarray(missed, dtype=np.float64)
    if missed.ndim != 2 or missed.shape[1] != len(THRESHOLDS) or len(missed) == 0:
        raise ValueError(f"need (N, {len(THRESHOLDS)}) missed shares of at least one image, got {missed.shape}")
    if not ((missed >= 0) & (missed <= 1)).all() or (np.diff(missed) < 0).any():
        raise ValueError("missed shares must lie in [0, 1] and never fall with the threshold")
    for name, value in (("share", share), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    shuffled = np.random.default_rng(0).permutation(missed)
    vouched = _gains(shuffled, share, confidence) > np.log(1 / (1 - confidence))
    best = (len(vouched) if vouched.all() else int(vouched.argmin())) - 1
    if best < 1:
        return None
    return RiskControl(float(THRESHOLDS[best]), share, confidence, float(missed[:, best].mean()), len(missed))


def _gains(losses: np.ndarray, share: float, confidence: float) -> np.ndarray:
    """Log of the most that bets against "the mean loss is above `share`" win, for each column of `losses` (N, K).

    Such bets win more than 1 / (1 - confidence) with probability 1 - confidence at most if that is true.
    """
    count = np.arange(1, len(losses) + 1)[:, None]
    mean = (0.5 + losses.cumsum(0)) / (1 + count)
    variance = (0.25 + ((losses - mean) ** 2).cumsum(0)) / (1 + count)
    before = np.vstack([np.full(losses.shape[1], 0.25), variance[:-1]])  # a bet knows the images before it
    bets = np.minimum(1, np.sqrt(2 * np.log(1 / (1 - confidence)) / (len(losses) * before)))
    gains: np.ndarray = np.log1p(-bets * (losses - share)).cumsum(0).max(0)
    return gains
