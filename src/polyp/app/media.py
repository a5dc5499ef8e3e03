"""Images and videos: decoding uploads, drawing predictions, encoding the result."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from polyp.app.inference_queue import InputImage, Prediction
from polyp.errors import InputError
from polyp.inference import polyps
from polyp.inference.image import TooManyPixels, decode
from polyp.metrics.overlap import image_scores
from polyp.pictures import PREDICTION, TRUTH, contour, overlay
from polyp.prediction.video import annotate, tabulate

MAX_PIXELS = 2**24
"""Of an uploaded image; an endoscope's has two million."""

MAX_FRAMES = 3000
"""Of a video that are read: two minutes of it."""

SHOWN = 1280
"""Pixels of the longer side of pictures on the page; downloads have all."""

VIEWS = ("overlay", "errors", "probability", "uncertainty", "mask", "image")
"""What can be drawn of a prediction; errors only where the truth is known."""

OUTCOMES = {"correct": (0, 158, 115), "missed": (86, 180, 233), "false alarm": (240, 228, 66)}
"""Bluish green, sky blue and yellow of Okabe and Ito's palette (2008), which colour-blind people can tell apart."""

MAX_SPREAD = 0.5
"""The largest standard deviation of numbers in 0-1: the upper end of the scale of the uncertainty."""


class NotAnImage(InputError):
    """An upload is no image that can be read."""


def hash_bytes(content: bytes) -> str:
    """The cache key of an upload; only a client that has the file knows it."""
    return hashlib.sha256(content).hexdigest()


def decode_upload(content: bytes, name: str) -> InputImage:
    """The image in a file's bytes.

    Raises:
        TooManyPixels: it is larger than `MAX_PIXELS`.
        NotAnImage: it cannot be read.
    """
    try:
        return InputImage(hash_bytes(content), decode(content, name, MAX_PIXELS))
    except TooManyPixels:
        raise
    except InputError as error:
        raise NotAnImage(str(error)) from error


def describe_polyps(prediction: Prediction, threshold: float) -> dict[str, Any]:
    """The polyps as JSON; positions and sizes in pixels, shares and probabilities in 0-1."""
    found = []
    for polyp in polyps.find(prediction.probability, threshold):
        values = asdict(polyp)
        box = {side: values.pop(side) for side in ("left", "top", "width", "height")}
        found.append({"box": box, "centroid": {axis: values.pop(axis) for axis in ("x", "y")}} | values)
    height, width = prediction.probability.shape
    return {
        "model": prediction.model,
        "size": {"width": width, "height": height},
        "threshold": threshold,
        "polyps": found,
        "milliseconds": round(prediction.milliseconds, 1),
    }


def describe_result(prediction: Prediction, threshold: float, opacity: float, view: str) -> dict[str, Any]:
    """What the page shows of a prediction, as JSON; arguments as for `draw`."""
    truth, scores = prediction.image.truth, None
    if truth is not None:
        values = image_scores(torch.from_numpy(prediction.probability), torch.from_numpy(truth), threshold)
        scores = {name: values[name].item() for name in ("dice", "iou")}
    return describe_polyps(prediction, threshold) | {
        "image": prediction.image.key,
        "scores": scores,
        "legend": describe_colours(prediction, threshold, view),
        "picture": encode_for_page(draw(prediction, threshold, opacity, view)),
    }


def describe_colours(prediction: Prediction, threshold: float, view: str) -> dict[str, Any]:
    """The legend of a view as JSON: `items` of a colour and a label (with a share of the pixels), or a `scale`."""
    truth = prediction.image.truth
    if view in ("probability", "uncertainty"):
        ends = ["0", "1"] if view == "probability" else ["0 certain", f"{MAX_SPREAD} uncertain"]
        return {"scale": apply_viridis(np.linspace(0, 1, 9)[None])[0].tolist(), "ends": ends}
    if view == "errors" and truth is not None:
        parts = find_outcomes(polyps.mask(prediction.probability, threshold), truth)
        items = [
            {"label": label, "colour": colour, "share": float(part.mean())}
            for (label, colour), part in zip(OUTCOMES.items(), parts, strict=True)
        ]
    else:
        known = {"prediction": PREDICTION} | ({} if truth is None else {"truth": TRUTH})
        items = (
            [{"label": label, "colour": colour} for label, colour in known.items()]
            if view == "overlay"
            else []
        )
    return {"items": items}


def draw(prediction: Prediction, threshold: float, opacity: float, view: str) -> np.ndarray:
    """A picture of a prediction.

    Args:
        prediction: for `uncertainty` its spread is known.
        threshold: a pixel is polyp from this probability on.
        opacity: of the colours laid over the image, 0-1.
        view: one of `VIEWS`.

    Returns:
        (H, W, 3) uint8 RGB; for `mask` (H, W) uint8, 255 where there is a polyp, else 0.

    Raises:
        InputError: `errors` of an image without truth.
    """
    pixels, truth = prediction.image.pixels, prediction.image.truth
    mask = polyps.mask(prediction.probability, threshold)
    match view:
        case "image":
            return pixels
        case "mask":
            return mask
        case "probability":
            return draw_heat(pixels, prediction.probability, mask, opacity)
        case "uncertainty":
            assert prediction.spread is not None
            return draw_heat(pixels, prediction.spread / MAX_SPREAD, mask, opacity)
        case "errors":
            if truth is None:
                raise InputError("no truth is known for this image, so there are no errors to draw")
            drawn = pixels.copy()
            for part, colour in zip(find_outcomes(mask, truth), OUTCOMES.values(), strict=True):
                drawn[part] = np.rint(pixels[part] * (1 - opacity) + np.multiply(colour, opacity)).astype(
                    np.uint8
                )
                drawn = contour(drawn, part, colour)
            return drawn
    drawn = overlay(pixels, mask, opacity)
    return drawn if truth is None else contour(drawn, truth, TRUTH)


def draw_heat(pixels: np.ndarray, values: np.ndarray, mask: np.ndarray, opacity: float) -> np.ndarray:
    """The grey image with values (H, W) in 0-1 as colours on it, and the outline of the mask in white."""
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    strength = opacity**0.5  # faint colours are hard to read; 0 and 1 stay what they are
    heat = apply_viridis(np.clip(values, 0, 1))
    return contour(cv2.addWeighted(grey, 1 - strength, heat, strength, 0), mask != 0, (255, 255, 255))


def apply_viridis(values: np.ndarray) -> np.ndarray:
    """Values (H, W) in 0-1 as colours (H, W, 3) uint8 RGB of a perceptually uniform scale."""
    steps = np.rint(values * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def find_outcomes(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false negatives and false positives (H, W) bool, in the order of `OUTCOMES`."""
    predicted, true = mask != 0, truth != 0
    return predicted & true, true & ~predicted, predicted & ~true


def encode_png(picture: np.ndarray) -> bytes:
    """A mask or an RGB picture as PNG."""
    ordered = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", ordered)[1].tobytes()


def encode_for_page(picture: np.ndarray) -> str:
    """A data URI of at most `SHOWN` pixels a side."""
    scale = SHOWN / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    flags = [
        cv2.IMWRITE_JPEG_QUALITY,
        92,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    ordered = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return f"data:image/jpeg;base64,{base64.b64encode(cv2.imencode('.jpg', ordered, flags)[1].tobytes()).decode()}"


def annotate_video(
    path: Path, folder: Path, predictor: Any, threshold: float, progress: Callable[[int, int | None], None]
) -> tuple[dict[str, Any], Path, Path]:
    """Draw the polyps on the first `MAX_FRAMES` of a video.

    Args:
        path: the video.
        folder: to write to.
        predictor: has a `Predictor`'s `predict_all`.
        threshold: a pixel is polyp from this probability on.
        progress: is called with the number of frames done and of all (None if it is not known).

    Returns:
        The summary as JSON, the video as WebM and the table of its frames as CSV.

    Raises:
        InputError: it is no video that can be read.
    """
    video, table = folder / "polyps.webm", folder / "polyps.csv"
    summary = tabulate(annotate(path, video, predictor, threshold, progress, MAX_FRAMES), table)
    return (
        {
            "frames": summary.frames,
            "frames_with_polyps": summary.with_polyps,
            "problem": bool(summary.problem),
        },
        video,
        table,
    )
