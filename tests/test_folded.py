"""A folded model answers as the model does, whatever the network is made of."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyp.inference.folded import folded
from polyp.model.network import ARCHITECTURES
from polyp.model.segmenter import PolypSegmenter


def segmenter(arch: str, encoder: str, **settings: Any) -> PolypSegmenter:
    """With random weights, and normalisation that does something."""
    torch.manual_seed(0)
    given: dict[str, Any] = dict.fromkeys(
        ("encoder_weights", "encoder_depth", "decoder_channels", "decoder_attention"), None
    )
    given |= {"stages": 1, "image_size": 64, "loss": "dice_bce", "threshold": 0.5}
    return unlike(PolypSegmenter(arch, encoder, **given | settings))


def unlike(model: PolypSegmenter) -> PolypSegmenter:
    """The model, no normalisation of which leaves its input as it is."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


@torch.inference_mode()
def logits(model: PolypSegmenter, half: bool = False) -> Tensor:
    height, width = model.image_size
    images = torch.rand(2, 3, height, width + 20, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return torch.stack(model.network(images)).float()


def apart(one: Tensor, other: Tensor) -> float:
    return (one - other).square().mean().sqrt().item()


def check(model: PolypSegmenter) -> None:
    """In float32 the same; in bf16 as near to that as autocast is."""
    exact = logits(model)
    spread = exact.std().item()
    assert spread > 1e-3, "a constant answer proves nothing"
    torch.testing.assert_close(logits(folded(model)), exact, rtol=1e-4, atol=1e-4 * max(1, spread))
    assert apart(logits(folded(model, torch.bfloat16), half=True), exact) < 1.5 * apart(logits(model, half=True), exact)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_normalisation_is_gone_and_the_model_is_as_it_was() -> None:
    model = segmenter("unet", "mobilenet_v2", decoder_channels=[16, 16, 8, 8, 8])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(model)
    assert norms(model) > 50 and norms(folded(model)) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Odd(nn.Module):
    """Whose normalisation must stay where it is, but for one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.one, self.other, self.twice, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.folds, self.shared, self.again, self.beside = (nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.folds(self.plain(image))
        x = self.shared(self.one(x)) + self.shared(self.other(x))  # two convolutions before one normalisation
        x = self.twice(self.again(self.twice(x)))  # a convolution called twice
        seen = self.last(x)
        return [self.beside(seen) * seen]  # what is normalised is needed as it is, too


def test_what_cannot_be_folded_stays() -> None:
    model = segmenter("unet", "mobilenet_v2", decoder_channels=[16, 16, 8, 8, 8])
    torch.manual_seed(0)
    model.network = Odd()  # type: ignore[assignment]
    check(unlike(model))
    assert norms(folded(model)) == 3


NETWORKS = [(arch, {"dpt": "tu-vit_tiny_patch16_224"}.get(arch, "resnet18")) for arch in sorted(ARCHITECTURES)]
ENCODERS = [
    "densenet121",  # normalises before it convolves, what many layers take
    "tu-resnetv2_50",  # normalisation with the activation in it
    "tu-nf_regnet_b0",  # weights that are made anew each time
    "tu-tf_efficientnet_lite0",  # pads as TensorFlow does
    "mit_b0",  # attention
    "tu-skresnet18",  # branches
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "encoder"), [*NETWORKS, *(("unet", encoder) for encoder in ENCODERS)])
def test_every_kind_of_network(arch: str, encoder: str) -> None:
    check(segmenter(arch, encoder, image_size=128 if arch == "pan" else 64))


@pytest.mark.slow
def test_two_stages() -> None:
    check(segmenter("unet", "resnet18", stages=2))
