"""Pictures of images with outlines: image | truth | prediction."""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from polyp import files
from polyp.images import IGNORED

load_font = cache(ImageFont.load_default)  # which takes half a millisecond

Colour = tuple[int, int, int]  # red, green and blue, 0-255

TRUTH: Colour = (86, 180, 233)
PREDICTION: Colour = (255, 200, 0)
"""Sky blue and yellow, which colour-blind people can distinguish (after Okabe and Ito, 2008)."""

LEGEND = {"truth": TRUTH, "prediction": PREDICTION}
TEXT, STRIP, WHITE = (255, 255, 255), (38, 42, 48), (255, 255, 255)
GAP, PANEL_HEIGHT = 4, 160


def contour(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """The image (H, W, 3) uint8 with the outline of a mask (H, W), polyp where not 0; changes the image."""
    polyp = (mask != 0).view(np.uint8)
    x, y, width, height = cv2.boundingRect(polyp)
    if not width:
        return image
    outlines, _ = cv2.findContours(
        polyp[y : y + height, x : x + width], cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(x, y)
    )
    thickness = -(-min(mask.shape) // 120)
    return cv2.drawContours(np.ascontiguousarray(image), outlines, -1, colour, thickness)


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    opacity: float = 0.25,
    labels: Sequence[tuple[int, int, str]] = (),
) -> np.ndarray:
    """The image with a predicted mask, tinted inside and outlined.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W), polyp where not 0.
        opacity: of the tint, 0-1; 0 draws the outline alone.
        labels: left and top of a polyp's box, and the text above it.
    """
    picture, polyp = image.copy(), (mask != 0).view(np.uint8)
    x, y, width, height = cv2.boundingRect(polyp)
    region = picture[y : y + height, x : x + width]
    if region.size:
        values = np.arange(256)[:, None] * (1 - opacity) + np.multiply(PREDICTION, opacity)
        tinted = cv2.LUT(region, np.rint(values).astype(np.uint8)[None])
        region[:] = cv2.copyTo(tinted, polyp[y : y + height, x : x + width], region)
    picture = contour(picture, polyp, PREDICTION)
    size = max(10, min(mask.shape) // 18)
    for left, top, text in labels:
        label = _write_label(text, size)
        left, top = max(0, min(left, picture.shape[1] - label.shape[1])), max(0, top - label.shape[0])
        region = picture[top : top + label.shape[0], left : left + label.shape[1]]
        region[:] = label[: region.shape[0], : region.shape[1]]
    return picture


def panel(
    image: np.ndarray, truth: np.ndarray, probability: np.ndarray, threshold: float, height: int | None = None
) -> np.ndarray:
    """Image | truth | prediction side by side.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) in {0, 1, 255}; 255 is ignored.
        probability: (H, W) in 0-1.
        threshold: a pixel is predicted to be polyp from here on.
        height: in pixels, to which all three are scaled; lines are equally thick for all sizes of images.

    Returns:
        (H, 3 W + gaps, 3) uint8 RGB: the image with the outlines of truth (blue) and prediction (yellow),
        the mask of the truth, grey where pixels are ignored, and the predicted mask.
    """
    if height is not None:
        size = round(image.shape[1] * height / image.shape[0]), height
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        truth = cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST)
        probability = cv2.resize(probability, size, interpolation=cv2.INTER_LINEAR)
    predicted, polyp = probability >= threshold, truth == 1
    outlined = contour(contour(image.copy(), polyp, TRUTH), predicted, PREDICTION)
    true_mask, predicted_mask = (
        (mask * np.uint8(255))[..., None].repeat(3, 2) for mask in (polyp, predicted)
    )
    true_mask[truth == IGNORED] = 128
    gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
    true_mask = contour(true_mask, polyp, TRUTH)
    predicted_mask = contour(predicted_mask, predicted, PREDICTION)
    return np.hstack([outlined, gap, true_mask, gap, predicted_mask])


def sheet(
    panels: Sequence[np.ndarray],
    captions: Sequence[str] = (),
    legend: Mapping[str, Colour] | None = None,
    height: int = PANEL_HEIGHT,
) -> np.ndarray:
    """Panels of any size in two columns, each scaled to the same height and centred in its cell.

    Args:
        panels: the pictures, RGB.
        captions: a line of text above each panel; () for none.
        legend: words and their colours, in a line above the grid.
        height: of each panel in pixels, without its caption.
    """
    pictures = []
    for index, panel in enumerate(panels):
        size = round(panel.shape[1] * height / panel.shape[0]), height
        picture = cv2.resize(panel, size, interpolation=cv2.INTER_AREA)
        pictures.append(add_text(picture, {captions[index]: TEXT}) if captions else picture)
    width = max(picture.shape[1] for picture in pictures)
    cells = []
    for picture in pictures:
        left = GAP + (width - picture.shape[1]) // 2
        right = 2 * GAP + width - left - picture.shape[1]
        cells.append(cv2.copyMakeBorder(picture, GAP, GAP, left, right, cv2.BORDER_CONSTANT, value=WHITE))
    cells += [np.full_like(cells[0], 255)] * (len(cells) % 2)
    grid = np.vstack([np.hstack(cells[row : row + 2]) for row in range(0, len(cells), 2)])
    return add_text(grid, legend) if legend else grid


def add_text(picture: np.ndarray, texts: Mapping[str, Colour], size: int = 14) -> np.ndarray:
    """The picture (H, W, 3) RGB with words in their colours above it, in a font of `size` pixels.

    What is longer than the picture is cut off.
    """
    return np.vstack([_write(texts, size, picture.shape[1]), picture])


def _write(texts: Mapping[str, Colour], size: int, width: int | None = None) -> np.ndarray:
    """A strip (1.5 size, width, 3) uint8 with words in their colours; by default as wide as the words."""
    font, left = load_font(size), size / 2
    if width is None:
        width = round(sum(font.getlength(text) + size for text in texts))
    strip = Image.new("RGB", (width, round(1.5 * size)), STRIP)
    draw = ImageDraw.Draw(strip)
    for text, colour in texts.items():
        draw.text((left, strip.height / 2), text, colour, font, anchor="lm")
        left += font.getlength(text) + size
    return np.asarray(strip)


@lru_cache(1024)
def _write_label(text: str, size: int) -> np.ndarray:
    """The label of a polyp; many images have the same, and drawing it takes half a millisecond."""
    return _write({text: PREDICTION}, size)


def save(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture as PNG.

    Raises:
        WriteError: it cannot be written.
    """
    files.write_bytes(path, cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
