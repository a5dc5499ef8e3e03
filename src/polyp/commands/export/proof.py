"""Measurements of exported models: the difference to the module's probabilities, the Dice, and the speed."""

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from polyp import terminal
from polyp.data.pairs import Pair
from polyp.images import read_image, resize
from polyp.inference.predictor import Predictor
from polyp.metrics.overlap import image_scores

Name = TypeVar("Name", bound=Hashable)

SIZES = (1.0, 0.5, 1.5)  # at which models are compared, times the image's own size
ROUND = 5  # consecutive images of each model when timing, so that other load affects all models


def measure_differences(
    reference: Predictor, predictors: Mapping[Name, Predictor], pairs: Sequence[Pair]
) -> dict[Name, dict[str, float]]:
    """The largest absolute difference to the reference's probabilities, by model and by size."""
    largest = {name: {f"{scale:g}": 0.0 for scale in SIZES} for name in predictors}
    for pair in pairs:
        image = torch.from_numpy(read_image(pair.image)).permute(2, 0, 1)
        height, width = image.shape[1:]
        for scale in SIZES:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = resize(image, size).permute(1, 2, 0).numpy()
            expected = reference.predict(scaled)
            for name, predictor in predictors.items():
                difference = float(np.abs(predictor.predict(scaled) - expected).max())
                largest[name][f"{scale:g}"] = max(largest[name][f"{scale:g}"], difference)
    return largest


def measure_scores(
    predictors: Mapping[Name, Predictor], pairs: Sequence[Pair], threshold: float
) -> dict[Name, dict[str, Any]]:
    """The Dice and the speed of models, which predict one image at a time.

    Returns:
        For each model `dice` (see `polyp.metrics.overlap.DEFINITIONS`, at the images' own size),
        `latency_ms`, the median and 95 % from an image's file to its mask, and `images_per_second`.
    """
    scores: dict[Name, list[float]] = {name: [] for name in predictors}
    seconds: dict[Name, list[float]] = {name: [] for name in predictors}
    for start in terminal.track(range(0, len(pairs), ROUND), "scoring"):
        for name, predictor in predictors.items():
            predictor.predict(read_image(pairs[start].image))  # not timed: replaces the last model in caches
            for pair in pairs[start : start + ROUND]:
                started = time.perf_counter()
                probability = predictor.predict(read_image(pair.image))
                _ = probability >= threshold
                seconds[name].append(time.perf_counter() - started)
                mask = torch.from_numpy(pair.read()[1])
                scores[name].append(image_scores(torch.from_numpy(probability), mask)["dice"].item())
    results = {}
    for name in predictors:
        median, p95 = np.percentile(seconds[name], (50, 95)).tolist()
        results[name] = {
            "dice": float(np.mean(scores[name])),
            "latency_ms": {"median": round(median * 1e3, 2), "p95": round(p95 * 1e3, 2)},
            "images_per_second": round(1 / median, 2),
        }
    return results
