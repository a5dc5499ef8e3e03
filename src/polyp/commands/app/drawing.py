"""What is drawn on an image: the polyps found, the errors, the uncertainty."""

import cv2
import numpy as np

from polyp.commands.app.desk import Seen
from polyp.inference import polyps
from polyp.report.pictures import TRUTH, contour, overlay

OVERLAY, ERRORS, UNCERTAINTY, IMAGE = VIEWS = ("Overlay", "Errors", "Uncertainty", "Image")
"""What can be shown; errors where the truth is known."""

RIGHT, MISSED, FALSE = (0, 158, 115), (86, 180, 233), (240, 228, 66)
"""Bluish green, sky blue and yellow of Okabe and Ito's palette (2008), which colour-blind people tell apart."""

MOST_SPREAD = 0.5
"""The largest standard deviation of numbers in 0-1: the upper end of the heat map's scale."""


def draw(seen: Seen, threshold: float, opacity: float, view: str = OVERLAY) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB of what a model says of an image.

    Args:
        seen: what it says; for `ERRORS` the photo has a truth, for `UNCERTAINTY` the spread is known.
        threshold: a pixel is polyp from this probability on.
        opacity: of what is laid over the image, 0-1.
        view: one of `VIEWS`.
    """
    image, truth = seen.photo.image, seen.photo.truth
    if view == IMAGE:
        return image
    mask = polyps.mask(seen.probability, threshold)
    if view == ERRORS:
        assert truth is not None
        drawn = image.copy()
        for part, colour in zip(outcomes(mask, truth), (RIGHT, MISSED, FALSE), strict=True):
            drawn[part] = np.rint(image[part] * (1 - opacity) + np.multiply(colour, opacity)).astype(np.uint8)
            drawn = contour(drawn, part, colour)
        return drawn
    if view == UNCERTAINTY:
        assert seen.spread is not None
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        heat = viridis(np.clip(seen.spread / MOST_SPREAD, 0, 1))
        strength = opacity**0.5  # of much that is faint; 0 and 1 stay what they are
        return contour(cv2.addWeighted(grey, 1 - strength, heat, strength, 0), mask != 0, (255, 255, 255))
    drawn = overlay(image, mask, opacity)
    return drawn if truth is None else contour(drawn, truth, TRUTH)


def outcomes(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where (H, W) bool the prediction is right about a polyp, has missed it, and sees one that is none."""
    predicted, true = mask != 0, truth != 0
    return predicted & true, true & ~predicted, predicted & ~true


def viridis(values: np.ndarray) -> np.ndarray:
    """Values (H, W) in 0-1 as colours (H, W, 3) uint8 RGB, which are as different as the values to every eye."""
    steps = np.rint(values * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
