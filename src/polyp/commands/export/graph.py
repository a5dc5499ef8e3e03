"""The computation of an exported model: from the pixels of an image to probabilities of the same size."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyp.model.segmenter import PolypSegmenter


class Graph(nn.Module):
    """`PolypSegmenter.predict` in operations that all runtimes have and compute alike, averaged over models.

    Args:
        models: with the weights; of one image size.
        half: compute the networks in float16, and the resizing and averaging in float32.
    """

    def __init__(self, models: Sequence[PolypSegmenter], half: bool = False) -> None:
        super().__init__()
        networks = [copy.deepcopy(model.network) for model in models]
        self.networks = nn.ModuleList(networks)
        self.size = models[0].image_size
        for module in self.networks.modules():
            if hasattr(module, "fused_attn"):  # torch's exporter cannot translate all uses of it
                module.__dict__["fused_attn"] = False
        if half:
            for network in networks:
                network.stages = nn.ModuleList(_Half(stage) for stage in network.stages)

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities (B, H, W) float32 in 0-1 of images (B, H, W, 3) uint8 RGB."""
        pixels, size = resize(image, self.size) / 255, image.shape[1:3]
        logits = [network(pixels)[-1] for network in self.networks]
        probabilities = [
            torch.sigmoid(F.interpolate(values, size=size, mode="bilinear"))[:, 0] for values in logits
        ]
        if len(probabilities) == 1:
            return probabilities[0]
        return sum(probabilities[1:], probabilities[0]) / len(probabilities)


class _Half(nn.Module):
    """A network that computes in float16, with float32 input and output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.half()).float()


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`polyp.images.resize` of images (B, H, W, 3) uint8: (B, 3, *size) float32, whole numbers in 0-255.

    ONNX has an operation of that name, but runtimes do not agree on it: ONNX Runtime's differs from torch's
    by up to 13 grey levels at an image's border. This computes torch's 8-bit integers with matrix products,
    first along the rows.
    """
    height, width = image.shape[1:3]
    grey = image.permute(0, 1, 3, 2).float() - GREY  # (B, H, 3, W)
    rows = _resize_lines(grey, width, size[1])
    columns = _resize_lines(rows.flatten(2).transpose(1, 2), height, size[0])  # (B, 3 * width, height)
    return columns.unflatten(1, (3, size[1])).transpose(2, 3) + GREY


GREY = 128  # subtracted from pixels, so that float32 holds their products with 17-bit weights exactly


def _resize_lines(lines: Tensor, source: int, target: int) -> Tensor:
    """Resize lines of pixels less `GREY` from (..., source) to (..., target), rounded.

    The weights are those of ATen/native/cpu/UpSampleKernel.cpp: a triangle as wide as a target pixel, at
    least two source pixels, as whole numbers of as many bits as fit 16 with a sign.
    """
    j, i = torch.arange(source)[:, None], torch.arange(target)[None]
    distance = ((2 * j + 1) * target - (2 * i + 1) * source).abs()  # times 2 * target, to be whole
    triangle = 2 * cast(int, torch.sym_max(source, target)) - distance
    weights = triangle.clamp(min=0).double()
    weights = weights / weights.sum(0, keepdim=True)
    bits = (torch.log2((2**15 - 0.5) / weights.max().float()).ceil() - 1).clamp(0, 21)
    unit = torch.exp2(bits)
    weights = (weights * unit.double() + 0.5).floor().float() / unit
    correction = GREY * (weights.sum(0) - 1)  # rounded weights do not sum to exactly 1
    return (lines @ weights + (correction + 0.5)).floor()  # within 0-255, since no weight is negative
