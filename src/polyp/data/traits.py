"""What an image and its mask are like, in a few numbers, and the strata that they make."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from polyp.images import components

VIEW = 256  # pixels of the longer side at which image quality is measured, so that it does not depend on the size
DARK = 12  # the brightest channel of a pixel of a black box; the darkest tissue is above
GLARE = 200  # the darkest channel of a specular pixel
BOX = 0.02, 0.6  # share of the image from which a black corner can be a box, and how dark it may be beyond its sides
DRAWN = 0.01  # share of the image in colours that tissue never has


def traits(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """What an image and its mask are like.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) in {0, 1}.

    Returns:
        polyp_share: of the pixels, 0-1.
        polyps: how many there are, see `polyp.images.components`.
        irregularity: 1 - 4 pi area / perimeter² of the largest polyp (the isoperimetric quotient; outline simplified by
            1 % of its size): 0 for a disc, about .21 for a square, near 1 for a fringed shape. NaN without a polyp.
        sharpness: log10 of the variance of the Laplacian of the grey image (Pech-Pacheco et al., ICPR 2000), measured
            in the field of view, beside highlights, with the longer side scaled to 256 pixels.
        highlights: share of the field of view that is so bright that its colour is lost (all channels from 200), 0-1;
            burnt-in white text adds about .003.
        overlay: 1 if a box covers a part of the picture: a black or green one (ScopeGuide) in the lower left corner, or
            a message on a coloured bar. Small white text, which nearly every frame has, is none.
    """
    count, labels = components(mask)
    scale = VIEW / max(mask.shape)
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    view = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    brightest = view.max(axis=2)
    field = cv2.erode((cv2.blur(brightest, (5, 5)) > 2 * DARK).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    glare = view.min(axis=2) >= GLARE
    return {
        "polyp_share": float(np.mean(mask != 0)),
        "polyps": float(count),
        "irregularity": _irregularity(labels == np.bincount(labels.ravel())[1:].argmax() + 1) if count else math.nan,
        "sharpness": _sharpness(view, field, glare),
        "highlights": float(glare[field].mean()) if field.any() else 0.0,
        "overlay": float(_boxed(brightest) or _drawn(view)),
    }


def _irregularity(polyp: np.ndarray) -> float:
    outlines, _ = cv2.findContours(polyp.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=len)
    # An outline of pixels is a staircase, longer than what it stands for: straight lines near enough take its place.
    outline = cv2.approxPolyDP(outline, max(0.5, 0.01 * math.sqrt(polyp.sum())), closed=True)
    perimeter = cv2.arcLength(outline, closed=True)
    if not perimeter:  # one pixel
        return 0.0
    return float(np.clip(1 - 4 * math.pi * cv2.contourArea(outline) / perimeter**2, 0, 1))


def _sharpness(view: np.ndarray, field: np.ndarray, glare: np.ndarray) -> float:
    laplacian = cv2.Laplacian(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    beside = field & (cv2.dilate(glare.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0)
    return math.log10(float(laplacian[beside].var()) + 0.01) if beside.any() else -2.0


def _boxed(brightest: np.ndarray) -> bool:
    """Whether the largest black rectangle of the lower left corner ends sharply above and on the right.

    The corners that an octagonal field of view leaves black are triangles: beyond the sides of a rectangle in them the
    black goes on.
    """
    height, width = brightest.shape
    black = brightest[::-1] <= DARK
    areas = np.arange(1, height + 1)[:, None] * np.arange(1, width + 1)
    filled = black.cumsum(0, dtype=np.int32).cumsum(1) >= 0.985 * areas
    top, right = np.unravel_index(np.argmax(filled * areas), areas.shape)
    if not filled.any() or (top + 1) * (right + 1) < BOX[0] * areas.size or top > 0.7 * height or right > 0.7 * width:
        return False
    beyond = black[top + 3 : top + 6, : right + 1], black[: top + 1, right + 3 : right + 6]
    return all(side.size and side.mean() < BOX[1] for side in beyond)


def _drawn(view: np.ndarray) -> bool:
    red, green, blue = cv2.split(view)
    return float(np.mean((red < 60) & (cv2.max(green, blue) > 90))) > DRAWN


@dataclass(frozen=True)
class Stratum:
    """Bins of one trait.

    The limits are fixed, so that data sets can be compared. They were chosen from Kvasir-SEG, of whose 1000 images they
    make: size 20 % small, 53 % medium, 27 % large; number 5 % several; shape 52 % round, 34 % oval, 14 % irregular;
    blur 11 % blurred, 51 % medium, 38 % sharp; highlights 42 % few, 33 % some, 25 % many; overlay 56 % box.

    Attributes:
        trait: the name in `traits`.
        bins: names from the least values to the largest.
        limits: the values at which the next bin begins, one fewer than bins.
    """

    trait: str
    bins: tuple[str, ...]
    limits: tuple[float, ...]

    def bin(self, value: float) -> str:
        """The name of the bin of a value."""
        return self.bins[sum(value >= limit for limit in self.limits)]

    def meaning(self, name: str) -> str:
        """The values of a bin, in words."""
        place = self.bins.index(name)
        low, high = ([0.0, *self.limits, math.inf])[place : place + 2]
        if self.trait in ("polyps", "overlay"):  # whole numbers
            return "2 and more" if name == "several" else f"{int(low > 0)}"
        unit, sign = (100, " %") if self.trait in ("polyp_share", "highlights") else (1, "")
        if low <= TINY:
            return f"below {high * unit:g}{sign}" if high > TINY else "0"
        return f"{low * unit:g} to {high * unit:g}{sign}" if math.isfinite(high) else f"from {low * unit:g}{sign}"


TINY = 1e-12  # above 0
STRATA: dict[str, Stratum] = {
    "size": Stratum("polyp_share", ("none", "small", "medium", "large"), (TINY, 0.05, 0.20)),
    "number": Stratum("polyps", ("none", "one", "several"), (1, 2)),
    "shape": Stratum("irregularity", ("round", "oval", "irregular"), (0.15, 0.30)),
    "blur": Stratum("sharpness", ("blurred", "medium", "sharp"), (2.3, 2.7)),
    "highlights": Stratum("highlights", ("few", "some", "many"), (0.01, 0.03)),
    "overlay": Stratum("overlay", ("none", "box"), (0.5,)),
}


def by_stratum(rows: Sequence[Mapping[str, Any]], number: str) -> dict[str, dict[str, list[float]]]:
    """A number of the images of each bin of each stratum, in the order of `STRATA`; bins without images are left out.

    Args:
        rows: one for each image, with its traits and the number.
        number: its name.
    """
    found = {name: {part: list[float]() for part in stratum.bins} for name, stratum in STRATA.items()}
    for row in rows:
        for name, part in strata_of(row).items():
            found[name][part].append(row[number])
    return {name: {part: values for part, values in parts.items() if values} for name, parts in found.items()}


def strata_of(row: Mapping[str, float]) -> dict[str, str]:
    """The bin of an image in each stratum, in the order of `STRATA`.

    Args:
        row: traits of an image, or a row of per_image.csv; what is missing or NaN leaves its stratum out.
    """
    known = {name: row.get(stratum.trait, math.nan) for name, stratum in STRATA.items()}
    return {name: STRATA[name].bin(value) for name, value in known.items() if not math.isnan(value)}
