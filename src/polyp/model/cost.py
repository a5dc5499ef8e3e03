"""What a network costs: multiply-accumulates, counted without doing the arithmetic, and time."""

import json
import statistics
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from polyp.images import square
from polyp.model.fitting import without_memory
from polyp.model.network import PolypNetwork
from polyp.model.segmenter import PolypSegmenter


def multiply_accumulates(model: Mapping[str, Any]) -> int:
    """Multiply-accumulates of convolutions, matrix products and attention for one image at the network's
    size.

    Normalisation, activations and resizing are left out, as is usual in the literature.

    Args:
        model: the section `model` of a run's configuration; weights are not needed.
    """
    keys = (
        "arch",
        "encoder",
        "encoder_depth",
        "decoder_channels",
        "decoder_attention",
        "stages",
        "image_size",
    )
    return _counted(json.dumps({key: model.get(key) for key in keys}))


@cache
def _counted(model: str) -> int:
    settings = json.loads(model)
    size = square(settings.pop("image_size"))
    with without_memory():
        network = PolypNetwork(**settings, encoder_weights=None, image_size=size).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2


def measure_latency(model: PolypSegmenter, repeats: int = 5) -> float:
    """Milliseconds that the probabilities of one image at the network's resolution take; the median.

    Args:
        model: on the device to measure.
        repeats: after one that is not counted.
    """
    image = torch.randint(256, (3, *model.image_size), dtype=torch.uint8)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        model.predict([image])[0].cpu()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds[1:]) * 1000, 2)
