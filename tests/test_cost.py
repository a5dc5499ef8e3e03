"""Multiply-accumulates, by hand."""

from typing import Any

import pytest
from torch import nn

from polyp.model import cost

MODEL = {
    "arch": "unet",
    "encoder": "mobilenet_v2",
    "encoder_depth": 5,
    "decoder_channels": [16, 16, 8, 8, 8],
    "decoder_attention": None,
    "stages": 1,
    "image_size": [64, 96],
    "loss": "dice",
}


def test_a_convolution_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(nn.Sequential):
        def __init__(self, **settings: Any) -> None:
            super().__init__(
                nn.Conv2d(3, 8, kernel_size=3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, kernel_size=1)
            )

    monkeypatch.setattr(cost, "PolypNetwork", Network)
    cost._counted.cache_clear()
    assert cost.multiply_accumulates(MODEL) == 64 * 96 * (3 * 8 * 9 + 8)
    cost._counted.cache_clear()


def test_cost_grows_with_the_area_and_the_stages() -> None:
    one = cost.multiply_accumulates(MODEL)
    assert cost.multiply_accumulates(MODEL | {"image_size": [128, 192]}) == 4 * one
    assert cost.multiply_accumulates(MODEL | {"stages": 2}) == 2 * one
    assert cost.multiply_accumulates(MODEL | {"loss": "bce"}) == one
    assert cost.multiply_accumulates(MODEL | {"encoder": "mit_b0"}) > 0  # cannot be built without substance
