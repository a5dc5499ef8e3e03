"""The images of the page: uploads are decoded, predictions drawn and described."""

import hashlib
from base64 import b64encode
from typing import Any

import cv2
import numpy as np
import torch

from polyp.commands.app.inference_queue import InputImage, Prediction
from polyp.commands.predict.results import encode
from polyp.errors import InputError
from polyp.images import TooManyPixels, decode
from polyp.inference.polyps import compute_mask, find_polyps
from polyp.metrics.overlap import image_scores
from polyp.report.pictures import PREDICTION, TRUTH, contour, overlay

MAX_PIXELS = 2**24  # of an uploaded image; an endoscope's has two million
MAX_SIDE = 1280  # pixels of the longer side of pictures on the page; downloads have the size of the image

VIEWS = ("overlay", "errors", "probability", "uncertainty", "mask", "image")
"""The ways to draw a prediction; errors only where the truth is known."""

# Bluish green, sky blue and yellow of Okabe and Ito (2008), which colour-blind people can tell apart.
OUTCOMES = {"correct": (0, 158, 115), "missed": (86, 180, 233), "false alarm": (240, 228, 66)}

MAX_SPREAD = 0.5  # the largest standard deviation of numbers in 0-1: the upper end of the uncertainty's scale

ENDS = {"probability": ("0", "1"), "uncertainty": ("0 certain", f"{MAX_SPREAD} uncertain")}
"""The labels at the ends of the colour scales."""


class NotAnImage(InputError):
    """An upload is no image that can be read."""


def hash_bytes(content: bytes) -> str:
    """The cache key of an upload, which only clients that have the file can compute."""
    return hashlib.sha256(content).hexdigest()


def decode_upload(content: bytes, name: str) -> InputImage:
    """The image in a file's bytes; raises TooManyPixels above `MAX_PIXELS`, NotAnImage if it is damaged."""
    try:
        return InputImage(hash_bytes(content), decode(content, name, MAX_PIXELS))
    except TooManyPixels:
        raise
    except InputError as error:
        raise NotAnImage(str(error)) from error


def describe_polyps(prediction: Prediction, threshold: float) -> dict[str, Any]:
    """The polyps as JSON; positions and sizes in pixels, shares and probabilities in 0-1."""
    polyps = [
        {
            "box": {"left": polyp.left, "top": polyp.top, "width": polyp.width, "height": polyp.height},
            "centroid": {"x": polyp.x, "y": polyp.y},
            "pixels": polyp.pixels,
            "share": polyp.share,
            "probability": polyp.probability,
        }
        for polyp in find_polyps(prediction.probability, threshold)
    ]
    height, width = prediction.probability.shape
    return {
        "model": prediction.model,
        "size": {"width": width, "height": height},
        "threshold": threshold,
        "polyps": polyps,
        "milliseconds": round(prediction.milliseconds, 1),
    }


def describe_result(prediction: Prediction, threshold: float, opacity: float, view: str) -> dict[str, Any]:
    """What the page shows of a prediction, as JSON; arguments as for `draw`.

    `legend` has a colour `scale`, or `items` with a label and a colour, and for errors a share of the pixels.
    """
    truth, scores = prediction.image.truth, None
    if truth is not None:
        values = image_scores(torch.from_numpy(prediction.probability), torch.from_numpy(truth), threshold)
        scores = {name: values[name].item() for name in ("dice", "iou")}
    legend: dict[str, Any] = {"items": []}
    if view in ENDS:
        legend = {"scale": apply_viridis(np.linspace(0, 1, 9)[None])[0].tolist(), "ends": ENDS[view]}
    elif view == "errors" and truth is not None:
        outcomes = find_outcomes(compute_mask(prediction.probability, threshold), truth)
        legend["items"] = [
            {"label": name, "colour": OUTCOMES[name], "share": float(pixels.mean())}
            for name, pixels in outcomes.items()
        ]
    elif view == "overlay":
        legend["items"].append({"label": "prediction", "colour": PREDICTION})
        if truth is not None:
            legend["items"].append({"label": "truth", "colour": TRUTH})
    picture = draw(prediction, threshold, opacity, view)
    scale = MAX_SIDE / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    content = b64encode(encode(picture, ".jpg", quality + sampling)).decode()
    return describe_polyps(prediction, threshold) | {
        "image": prediction.image.key,
        "scores": scores,
        "legend": legend,
        "picture": f"data:image/jpeg;base64,{content}",
    }


def draw(prediction: Prediction, threshold: float, opacity: float, view: str) -> np.ndarray:
    """One of `VIEWS` of a prediction: (H, W, 3) uint8 RGB, or for `mask` (H, W) uint8 of 0 and 255.

    `opacity`, in 0-1, is that of the colours over the image. `uncertainty` needs the prediction's spread;
    `errors` raises InputError for an image without truth.
    """
    pixels, truth = prediction.image.pixels, prediction.image.truth
    mask = compute_mask(prediction.probability, threshold)
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
            drawing = pixels.copy()
            for name, region in find_outcomes(mask, truth).items():
                colours = pixels[region] * (1 - opacity) + np.multiply(OUTCOMES[name], opacity)
                drawing[region] = np.rint(colours).astype(np.uint8)
                drawing = contour(drawing, region, OUTCOMES[name])
            return drawing
    drawing = overlay(pixels, mask, opacity)
    return drawing if truth is None else contour(drawing, truth == 1, TRUTH)


def draw_heat(pixels: np.ndarray, values: np.ndarray, mask: np.ndarray, opacity: float) -> np.ndarray:
    """The grey image with colours for values (H, W) in 0-1, and the outline of the mask in white."""
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    strength = opacity**0.5  # faint colours are hard to read; 0 and 1 stay what they are
    heat = apply_viridis(np.clip(values, 0, 1))
    return contour(cv2.addWeighted(grey, 1 - strength, heat, strength, 0), mask != 0, (255, 255, 255))


def apply_viridis(values: np.ndarray) -> np.ndarray:
    """Values (H, W) in 0-1 as colours (H, W, 3) uint8 RGB of a perceptually uniform scale."""
    steps = np.rint(values * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def find_outcomes(mask: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The pixels (H, W) bool of true positives, false negatives and false positives, without ignored ones."""
    positive = mask != 0
    return {
        "correct": positive & (truth == 1),
        "missed": ~positive & (truth == 1),
        "false alarm": positive & (truth == 0),
    }
