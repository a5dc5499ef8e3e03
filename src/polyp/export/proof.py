"""What is measured of exported models: how far from the module they are, how good, how fast."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from polyp.data.pairs import Pair, read_image, read_mask
from polyp.images import resize
from polyp.metrics.overlap import image_scores

Predict = Callable[[Sequence[Tensor]], list[Tensor]]
"""From images (3, H, W) uint8 to probabilities (H, W) float32, as `PolypSegmenter.predict`."""

SIZES = (1.0, 0.5, 1.5)
"""The sizes that models are compared at, times the image's own."""

ROUND = 5
"""Images that one model is timed on before it is the next one's turn: whatever else the machine does hits all."""


def differences(
    reference: Predict, models: Mapping[str, Predict], pairs: Sequence[Pair]
) -> dict[str, dict[str, float]]:
    """The largest absolute difference to the reference's probabilities: for each model, by the images' size.

    Args:
        reference: the module in float32.
        models: by name.
        pairs: whose images to compare on.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for scale in SIZES:
        for pair in pairs:
            image = _tensor(pair)
            height, width = image.shape[1:]
            seen = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
            [expected] = reference([seen])
            for name, predict in models.items():
                away = (predict([seen])[0] - expected).abs().max().item()
                found[name][f"{scale:g}"] = max(away, found[name].get(f"{scale:g}", 0.0))
    return found


def dice(models: Mapping[str, Predict], pairs: Sequence[Pair]) -> dict[str, float]:
    """Each model's `dice` over images, see `polyp.metrics.overlap.DEFINITIONS`, at the images' own size."""
    scores: dict[str, list[float]] = {name: [] for name in models}
    for pair in tqdm(pairs, desc="Dice", unit="image", leave=False, disable=None):
        image, mask = _tensor(pair), torch.from_numpy(read_mask(pair.mask))
        for name, predict in models.items():
            scores[name].append(image_scores(predict([image])[0], mask)["dice"].item())
    return {name: float(np.mean(values)) for name, values in scores.items()}


def latencies(
    models: Mapping[str, Predict], pairs: Sequence[Pair], threshold: float, count: int
) -> dict[str, dict[str, float]]:
    """How long one image takes from its file to its mask: for each model the median and 95 % in ms, and images/s.

    Args:
        models: by name.
        pairs: whose images to take, again and again if they are few.
        threshold: of the mask.
        count: images.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for start in tqdm(range(0, count, ROUND), desc="latency", leave=False, disable=None):
        for name, predict in models.items():
            predict([_tensor(pairs[0])])  # threads and caches are the former model's
            for place in range(start, min(start + ROUND, count)):
                began = time.perf_counter()
                _ = predict([_tensor(pairs[place % len(pairs)])])[0] >= threshold
                seconds[name].append(time.perf_counter() - began)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    median, most = np.percentile(seconds, (50, 95)).tolist()
    milliseconds = {"median": round(median * 1e3, 2), "p95": round(most * 1e3, 2)}
    return {"latency_ms": milliseconds, "images_per_second": round(1 / median, 2)}


def _tensor(pair: Pair) -> Tensor:
    return torch.from_numpy(read_image(pair.image)).permute(2, 0, 1)
