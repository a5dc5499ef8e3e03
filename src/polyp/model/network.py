"""The network: any architecture and encoder of segmentation-models-pytorch, from pixels to logits of the same size."""

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders as SMP_ENCODERS
from torch import Tensor, nn
from torch.nn import functional as F

from polyp.errors import InputError, describe_error, nearest, pick
from polyp.model.weights import load_encoder_weights, normalisation

ARCHITECTURES: dict[str, type[nn.Module]] = dict(smp.MODEL_ARCHITECTURES_MAPPING)

STRIDE = 32
"""Images are padded to a multiple of this many pixels, which every architecture accepts."""

DECODER_CHANNELS = (256, 128, 64, 32, 16)
"""Channels of a U-shaped decoder from stride 16 to stride 1; a shallower one keeps those of its strides."""

SAFE_ENCODERS = ("mobilenet_v2", "resnet34", "mit_b0", "tu-vit_tiny_patch16_224")
"""Small encoders of different kinds, one of which works with any architecture."""


Given = tuple[int | None, Sequence[int] | int | None, str | None]
"""The user's encoder_depth, decoder_channels and decoder_attention."""


class PolypNetwork(nn.Module):
    """One or two encoder-decoders with everything around them that inference needs: normalisation, padding, cropping.

    Two stages are DoubleU-Net's scheme (Jha et al., CBMS 2020): the second network sees the image multiplied by the
    first one's mask, and the loss supervises both.

    Args:
        arch, encoder, encoder_weights, encoder_depth, decoder_channels, decoder_attention, stages: as in conf/model.
        image_size: height and width in pixels that the network will be used at; the combination is tried at this size.

    Raises:
        InputError: a name is unknown or the combination cannot work; in one line, with the nearest that can.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: str,
        encoder: str,
        encoder_weights: str | None,
        encoder_depth: int | None,
        decoder_channels: Sequence[int] | int | None,
        decoder_attention: str | None,
        stages: int,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        pick("model.arch", arch, ARCHITECTURES)
        check_encoder_name(encoder)
        if stages not in (1, 2):
            raise InputError(f"model.stages={stages} is not possible: choose 1, or 2 for two stacked networks")
        given = encoder_depth, decoder_channels, decoder_attention
        size = tuple(math.ceil(side / STRIDE) * STRIDE for side in image_size)
        self.stages = nn.ModuleList(_build(arch, encoder, given, size) for _ in range(stages))
        mean, std = normalisation(encoder, encoder_weights)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        if encoder_weights is not None:
            for stage in self.stages:
                load_encoder_weights(stage.get_submodule("encoder"), encoder, encoder_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The logits of each stage, the last one's being the answer.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0-255 or float in 0-1, of any height and width.

        Returns:
            One (B, 1, H, W) tensor of logits for each stage.
        """
        height, width = image.shape[-2:]
        scaled = image if image.is_floating_point() else image.float() / 255
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        gated = scaled = F.pad(scaled, padding, mode="replicate") if any(padding) else scaled
        logits = []
        for stage in self.stages:
            normalised = ((gated - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            padded = stage(normalised)
            gated = scaled * torch.sigmoid(padded.float())
            logits.append(padded[..., :height, :width])
        return logits

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that pretrained weights are for."""
        for stage in self.stages:
            yield from stage.get_submodule("encoder").parameters()

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """All others: decoders and heads."""
        encoder = {id(parameter) for parameter in self.encoder_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in encoder)


def check_encoder_name(encoder: Any) -> None:
    """Say so, with the nearest names, if neither smp nor timm has such an encoder.

    Raises:
        InputError: it is unknown.
    """
    if not isinstance(encoder, str):
        raise InputError(f"model.encoder={encoder} must be a name such as mobilenet_v2 or resnet34")
    if encoder.startswith("tu-"):
        name = encoder.removeprefix("tu-")
        if not timm.is_model(name):
            names = [f"tu-{known}" for known in timm.list_models()]
            raise InputError(f"model.encoder={encoder} is unknown to timm: {nearest(encoder, names)}")
    elif encoder not in SMP_ENCODERS:
        known = [*SMP_ENCODERS, *(f"tu-{name}" for name in timm.list_models())]
        raise InputError(f"model.encoder={encoder} is unknown: {nearest(encoder, known)}")


def _decoder_settings(
    arch: str, depth: int | None, channels: Sequence[int] | int | None, attention: str | None
) -> dict[str, Any]:
    """The keyword arguments for smp, each held against its signature, since smp swallows unknown ones silently."""
    accepted = inspect.signature(ARCHITECTURES[arch].__init__).parameters
    depth = accepted["encoder_depth"].default if depth is None else depth
    if depth not in (3, 4, 5):
        raise InputError(f"model.encoder_depth={depth} is not possible: choose 3, 4 or 5")
    settings: dict[str, Any] = {"encoder_depth": depth}
    numbers = channels if isinstance(channels, Sequence) else [1 if channels is None else channels]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise InputError(f"model.decoder_channels={channels} must be whole numbers above 0")
    if channels is not None and "decoder_channels" not in accepted:
        raise InputError(f"model.decoder_channels={channels} has no meaning for model.arch={arch}: leave it null")
    if "decoder_channels" in accepted and isinstance(accepted["decoder_channels"].default, tuple):
        channels = DECODER_CHANNELS[-depth:] if channels is None else channels
        if isinstance(channels, int) or len(channels) != depth:
            raise InputError(
                f"model.decoder_channels={channels} must be a list of {depth} numbers, one for each level of "
                f"model.encoder_depth={depth}, such as {list(DECODER_CHANNELS[-depth:])}; null derives it"
            )
    elif channels is not None and not isinstance(channels, int):
        raise InputError(f"model.decoder_channels={list(channels)} must be a single number for model.arch={arch}")
    if channels is not None:
        settings["decoder_channels"] = channels
    if attention is not None:
        if "decoder_attention_type" not in accepted:
            able = [name for name, cls in ARCHITECTURES.items() if "decoder_attention_type" in _arguments(cls)]
            raise InputError(
                f"model.decoder_attention={attention} has no meaning for model.arch={arch}: leave it null, "
                f"or choose model.arch={' or '.join(able)}"
            )
        settings["decoder_attention_type"] = pick("model.decoder_attention", attention, {"scse": "scse"})
    return settings


def _arguments(cls: type) -> list[str]:
    return list(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]


def _build(arch: str, encoder: str, given: Given, size: tuple[int, ...]) -> nn.Module:
    settings = _decoder_settings(arch, *given)
    try:
        return _try(arch, encoder, settings, size)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        archs = (f"model.arch={other}" for other in _like(arch, ARCHITECTURES) if _works(other, encoder, given, size))
        encoders = (
            f"model.encoder={other}" for other in SAFE_ENCODERS if other != encoder and _works(arch, other, given, size)
        )
        depths = (
            f"model.encoder_depth={depth}" for depth in (5, 4, 3) if _works(arch, encoder, (depth, *given[1:]), size)
        )
        choices = [*islice(archs, 3), *islice(encoders, 2), *islice(depths, 1)]
        larger = math.ceil(max(size) / 256) * 256 or 256
        if not choices and _works(arch, encoder, given, (larger, larger)):
            choices = [f"data.image_size={larger}"]
        raise InputError(
            f"model.arch={arch} does not work with model.encoder={encoder} and model.encoder_depth="
            f"{settings['encoder_depth']} at {size[0]}x{size[1]}: {describe_error(error)}; "
            f"choose {' or '.join(choices) or 'another model.arch and model.encoder'}"
        ) from error


def _like(arch: str, others: Iterable[str]) -> list[str]:
    """The other architectures, the most similarly named first."""
    return sorted(set(others) - {arch}, key=lambda other: -SequenceMatcher(None, arch, other).ratio())


def _works(arch: str, encoder: str, given: Given, size: tuple[int, ...]) -> bool:
    # Parameters without substance cost no time, but Mix-Vision-Transformers read a value while being built.
    with torch.device("cpu" if encoder.startswith("mit_") else "meta"):
        try:
            _try(arch, encoder, _decoder_settings(arch, *given), size)
        except Exception:  # whatever smp or timm raise, the answer is no
            return False
    return True


def _try(arch: str, encoder: str, settings: dict[str, Any], size: tuple[int, ...]) -> nn.Module:
    """Build the network and send an image of no substance through it, which costs milliseconds and no arithmetic."""
    network = _create(arch, encoder, settings)
    output = _trial(network, size)
    # smp's default upsampling fits one depth only; the trial tells which factor this depth needs.
    if output != size and "upsampling" in _arguments(ARCHITECTURES[arch]):
        default = inspect.signature(ARCHITECTURES[arch].__init__).parameters["upsampling"].default
        network = _create(arch, encoder, settings | {"upsampling": default * size[0] // output[0]})
        output = _trial(network, size)
    if output != size:
        raise ValueError(f"it returns {output[0]}x{output[1]} masks")
    return network


def _create(arch: str, encoder: str, settings: dict[str, Any]) -> nn.Module:
    # Weights are never asked of smp here: it would go to the hub even when a checkpoint's weights follow.
    if arch == "dpt" and "vit" in encoder:  # plain transformers are made for one image size unless told otherwise
        settings = settings | {"dynamic_img_size": True}
    network = smp.create_model(arch, encoder, encoder_weights=None, **settings)
    return network.to(memory_format=torch.channels_last)


def _trial(network: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    state = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    training = network.training
    try:
        image = torch.empty(1, 3, *size, device="meta")
        output = torch.func.functional_call(network.eval(), state, (image,))
    finally:
        network.train(training)
    return tuple(output.shape[-2:])
