"""Measurements of exported models: how far from the module they are, how good, how fast."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from polyp import terminal
from polyp.data.pairs import Pair
from polyp.images import read_image, resize
from polyp.metrics.overlap import image_scores
from polyp.model.exported import ExportedModel
from polyp.model.segmenter import PolypSegmenter

Predict = Callable[[Sequence[Tensor]], list[Tensor]]
"""From images (3, H, W) uint8 to probabilities (H, W) float32, as `PolypSegmenter.predict`."""

Name = TypeVar("Name", bound=Hashable)

SIZES = (1.0, 0.5, 1.5)
"""The sizes that models are compared at, times the image's own."""

ROUND = 5
"""Consecutive images of each model when timing, so that other load on the machine hits all models."""


def average(models: Sequence[PolypSegmenter], fast: bool = False) -> Predict:
    """The mean of the probabilities of models."""

    def predict(images: Sequence[Tensor]) -> list[Tensor]:
        each = [model.predict(images, fast=fast) for model in models]
        return [torch.stack(probabilities).mean(0) for probabilities in zip(*each, strict=True)]

    return predict


def on_tensors(model: ExportedModel) -> Predict:
    """The probabilities of an exported model, which computes on arrays."""

    def predict(images: Sequence[Tensor]) -> list[Tensor]:
        arrays = [image.permute(1, 2, 0).numpy() for image in images]
        return [torch.from_numpy(probability) for probability in model.predict(arrays)]

    return predict


def differences(
    reference: Predict, models: Mapping[Name, Predict], pairs: Sequence[Pair]
) -> dict[Name, dict[str, float]]:
    """The largest absolute difference to the reference's probabilities, by model and by size.

    Args:
        reference: the module in float32.
        models: by name.
        pairs: whose images to compare on.
    """
    largest = {name: {f"{scale:g}": 0.0 for scale in SIZES} for name in models}
    for scale in SIZES:
        for pair in pairs:
            image = _load(pair)
            height, width = image.shape[1:]
            resized = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
            [expected] = reference([resized])
            for name, predict in models.items():
                difference = (predict([resized])[0] - expected).abs().max().item()
                largest[name][f"{scale:g}"] = float(
                    np.maximum(largest[name][f"{scale:g}"], difference)
                )  # keeps NaN
    return largest


def score(
    models: Mapping[Name, Predict], pairs: Sequence[Pair], threshold: float
) -> dict[Name, dict[str, Any]]:
    """How good and how fast models are, one image at a time.

    Args:
        models: by name.
        pairs: images and their masks.
        threshold: of the predicted mask.

    Returns:
        For each model `dice` (see `polyp.metrics.overlap.DEFINITIONS`, at the images' own size),
        `latency_ms`, the median and 95 % from an image's file to its mask, and `images_per_second`.
    """
    scores: dict[Name, list[float]] = {name: [] for name in models}
    seconds: dict[Name, list[float]] = {name: [] for name in models}
    for start in terminal.track(range(0, len(pairs), ROUND), "scoring"):
        for name, predict in models.items():
            predict([_load(pairs[start])])  # not timed: threads and caches are the previous model's
            for pair in pairs[start : start + ROUND]:
                started = time.perf_counter()
                [probability] = predict([_load(pair)])
                _ = probability >= threshold
                seconds[name].append(time.perf_counter() - started)
                mask = torch.from_numpy(pair.read()[1])
                scores[name].append(image_scores(probability, mask)["dice"].item())
    results = {}
    for name in models:
        median, p95 = np.percentile(seconds[name], (50, 95)).tolist()
        results[name] = {
            "dice": float(np.mean(scores[name])),
            "latency_ms": {"median": round(median * 1e3, 2), "p95": round(p95 * 1e3, 2)},
            "images_per_second": round(1 / median, 2),
        }
    return results


def _load(pair: Pair) -> Tensor:
    return torch.from_numpy(read_image(pair.image)).permute(2, 0, 1)
