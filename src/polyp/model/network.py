"""The network: any architecture and encoder of segmentation-models-pytorch, from pixels to logits of the same
size.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher
from functools import cache
from itertools import chain, islice
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders as SMP_ENCODERS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from polyp.errors import InputError, describe_error, nearest, pick
from polyp.model import device
from polyp.model.weights import load_encoder_weights, normalisation

ARCHITECTURES: dict[str, type[nn.Module]] = dict(smp.MODEL_ARCHITECTURES_MAPPING)

STRIDE = 32
"""Images are padded to a multiple of this many pixels, which every architecture accepts."""

DECODER_CHANNELS = (256, 128, 64, 32, 16)
"""Channels of a U-shaped decoder from stride 16 to stride 1; a shallower one keeps those of its strides."""

SAFE_ENCODERS = ("mobilenet_v2", "resnet34", "mit_b0", "tu-vit_tiny_patch16_224")
"""Small encoders of different kinds, one of which works with any architecture."""

SIZE_ARGUMENTS = {"dynamic_img_size": True, "img_size": 224}
"""What timm's transformers take to work at another size than their own, with a value to try them with."""

Size = tuple[int, int]


class DecoderOptions(NamedTuple):
    """The configuration's keys of these names, of which None leaves the choice to the architecture."""

    encoder_depth: int | None
    decoder_channels: Sequence[int] | int | None
    decoder_attention: str | None


class PolypNetwork(nn.Module):
    """One or two encoder-decoders with everything around them that inference needs: normalisation, padding,
    cropping.

    Two stages are DoubleU-Net's scheme (Jha et al., CBMS 2020): the second network sees the image multiplied
    by the first one's mask, and the loss supervises both.

    Args:
        arch, encoder, encoder_weights, encoder_depth, decoder_channels, decoder_attention, stages: as in
            conf/model.
        image_size: height and width in pixels that the network will be used at; the combination is tried at
            this size.

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
        self.encoder_frozen = False
        pick("model.arch", arch, ARCHITECTURES)
        check_encoder_name(encoder)
        if type(stages) is not int or stages not in (1, 2):
            raise InputError(
                f"model.stages={stages} is not possible: choose 1, or 2 for two stacked networks"
            )
        options = DecoderOptions(encoder_depth, decoder_channels, decoder_attention)
        settings = _find_settings(arch, encoder, options, stages, _padded(image_size))
        self.recipe = arch, encoder, settings
        self.stages = nn.ModuleList(_build(*self.recipe) for _ in range(stages))
        mean, std = normalisation(encoder, encoder_weights)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        if encoder_weights is not None:
            adapted = {key: settings[key] for key in SIZE_ARGUMENTS if key in settings}
            for stage in self.stages:
                load_encoder_weights(stage.get_submodule("encoder"), encoder, encoder_weights, adapted)

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

    def train(self, mode: bool = True) -> "PolypNetwork":
        """As for any module; a frozen encoder keeps its statistics and drops nothing whatever the mode."""
        super().train(mode)
        if self.encoder_frozen:
            for stage in self.stages:
                stage.get_submodule("encoder").eval()
        return self

    def freeze_encoder(self) -> None:
        """Leave the encoder as it is from here on: no gradients, no new batch statistics, no dropout."""
        self.encoder_frozen = True
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(False)
        self.train(self.training)

    def accepts(self, image_size: Size) -> bool:
        """Whether the network, which was made for one image size, works at another; tried without memory."""
        size = _padded(image_size)
        try:
            return _run(*self.recipe, size)[0] == size
        except Exception:  # whatever timm and torch raise, the answer is no
            return False

    def trains_on_single_images(self, image_size: Size) -> bool:
        """Whether a batch of one image has more than one value per channel at each batch normalisation."""
        with without_memory():
            network = _create(*self.recipe).train()
            if self.encoder_frozen:
                network.get_submodule("encoder").eval()
            try:
                network(torch.empty(1, 3, *_padded(image_size)))
            except ValueError as error:  # torch has no class of its own for it
                if "more than 1 value per channel" in str(error):
                    return False
                raise
        return True

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that pretrained weights are for."""
        for stage in self.stages:
            yield from stage.get_submodule("encoder").parameters()

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """All others: decoders and heads."""
        encoder = {id(parameter) for parameter in self.encoder_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in encoder)


def _padded(image_size: Sequence[int]) -> Size:
    height, width = (math.ceil(side / STRIDE) * STRIDE for side in image_size)
    return height, width


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


def _decoder_settings(arch: str, options: DecoderOptions) -> dict[str, Any]:
    """The keyword arguments for smp, each checked against its signature, since smp ignores unknown ones."""
    depth, channels, attention = options
    accepted = inspect.signature(ARCHITECTURES[arch].__init__).parameters
    depth = accepted["encoder_depth"].default if depth is None else depth
    if type(depth) is not int or depth not in (3, 4, 5):
        raise InputError(f"model.encoder_depth={depth} is not possible: choose 3, 4 or 5")
    settings: dict[str, Any] = {"encoder_depth": depth}
    numbers = channels if isinstance(channels, Sequence) else [1 if channels is None else channels]
    if not all(type(number) is int and 0 < number <= 2**14 for number in numbers):
        raise InputError(f"model.decoder_channels={channels} must be whole numbers from 1 to {2**14}")
    if channels is not None and "decoder_channels" not in accepted:
        raise InputError(
            f"model.decoder_channels={channels} has no meaning for model.arch={arch}: leave it null"
        )
    if "decoder_channels" in accepted and isinstance(accepted["decoder_channels"].default, tuple):
        channels = DECODER_CHANNELS[-depth:] if channels is None else channels
        if isinstance(channels, int) or len(channels) != depth:
            raise InputError(
                f"model.decoder_channels={channels} must be a list of {depth} numbers, one for each level of "
                f"model.encoder_depth={depth}, such as {list(DECODER_CHANNELS[-depth:])}; null derives it"
            )
    elif channels is not None and not isinstance(channels, int):
        raise InputError(
            f"model.decoder_channels={list(channels)} must be a single number for model.arch={arch}"
        )
    if channels is not None:
        settings["decoder_channels"] = channels
    if attention is not None:
        if "decoder_attention_type" not in accepted:
            able = [
                name for name, cls in ARCHITECTURES.items() if "decoder_attention_type" in _arguments(cls)
            ]
            raise InputError(
                f"model.decoder_attention={attention} has no meaning for model.arch={arch}: leave it null, "
                f"or choose model.arch={' or '.join(able)}"
            )
        settings["decoder_attention_type"] = pick("model.decoder_attention", attention, {"scse": "scse"})
    return settings


def _arguments(cls: type) -> list[str]:
    return list(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]


def _find_settings(
    arch: str, encoder: str, options: DecoderOptions, stages: int, size: Size
) -> dict[str, Any]:
    """The keyword arguments for smp with which the network works at `size`, found on networks without memory.

    Raises:
        InputError: there are none, or the network is larger than this machine's memory.
    """
    settings = _decoder_settings(arch, options)
    try:
        settings, needed = _fit(arch, encoder, settings, size)
    except _UnfitError as error:
        choices = _alternatives(
            arch, encoder, options, size, [] if error.at_any_size else _usual_sizes(encoder, size)
        )
        raise InputError(
            f"model.arch={arch} does not work with model.encoder={encoder} and model.encoder_depth="
            f"{settings['encoder_depth']} at {size[0]}x{size[1]}: "
            f"{describe_error(error.__cause__ or error)}; "
            f"choose {' or '.join(choices) or 'another model.arch and model.encoder'}"
        ) from error
    if stages * needed > device.memory() / 2 and torch.get_default_device().type != "meta":
        raise InputError(
            f"model.arch={arch} with model.encoder={encoder} and "
            f"model.decoder_channels={options.decoder_channels} at "
            f"{size[0]}x{size[1]} needs {stages * needed / 2**30:.0f} GiB for its weights alone, more than "
            "half of "
            f"this machine's {device.memory() / 2**30:.0f} GiB of memory: choose a smaller one"
        )
    return settings


def _build(arch: str, encoder: str, settings: dict[str, Any]) -> nn.Module:
    network = _create(arch, encoder, settings)
    network.to(memory_format=torch.channels_last)
    _keep_contiguous(network)
    return network


class _UnfitError(Exception):
    """This combination of architecture, encoder and size does not work; the cause says why."""

    def __init__(self, *, at_any_size: bool) -> None:
        super().__init__()
        self.at_any_size = at_any_size


def _fit(arch: str, encoder: str, settings: dict[str, Any], size: Size) -> tuple[dict[str, Any], int]:
    """Find the arguments with which the encoder works at an image size, on networks without memory.

    Returns:
        `settings` and these arguments, and the bytes that the network will take.

    Raises:
        _UnfitError: there are none.
    """
    candidates: list[dict[str, Any]] = [{}]
    if encoder.startswith("tu-"):
        accepted = _size_arguments(encoder.removeprefix("tu-"))
        # A transformer that adapts itself to each image keeps the shapes of its pretrained weights and takes
        # any size.
        candidates = [{"dynamic_img_size": True}] * ("dynamic_img_size" in accepted) + candidates
        candidates += [{"img_size": size}] * ("img_size" in accepted)
    errors = []
    for candidate in candidates:
        try:
            return _trial(arch, encoder, settings | candidate, size)
        except _UnfitError:
            raise
        # smp, timm and torch raise errors of any class for a size that does not fit
        except Exception as error:
            errors.append(error)
    raise _UnfitError(at_any_size=False) from errors[0]


def _trial(arch: str, encoder: str, settings: dict[str, Any], size: Size) -> tuple[dict[str, Any], int]:
    output, needed = _run(arch, encoder, settings, size)
    # smp's default upsampling fits one depth only; the trial tells which factor this depth needs.
    if output != size and "upsampling" in _arguments(ARCHITECTURES[arch]):
        default = inspect.signature(ARCHITECTURES[arch].__init__).parameters["upsampling"].default
        settings = settings | {"upsampling": default * size[0] // output[0]}
        output, needed = _run(arch, encoder, settings, size)
    if output != size:
        raise ValueError(f"it returns {output[0]}x{output[1]} masks")
    return settings, needed


def _run(arch: str, encoder: str, settings: dict[str, Any], size: Size) -> tuple[Size, int]:
    """Send an image without memory through a network without memory: the size of the answer, and its weights'
    bytes.

    Raises:
        _UnfitError: the network cannot be built, whatever the size.
        Exception: of any class; the size does not fit.
    """
    with without_memory(), torch.no_grad():
        try:
            network = _create(arch, encoder, settings).eval()
        except Exception as error:  # smp, timm and torch raise errors of any class for what they cannot build
            raise _UnfitError(at_any_size=True) from error
        height, width = network(torch.empty(1, 3, *size)).shape[-2:]
    needed = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return (height, width), needed


@cache
def _size_arguments(name: str) -> list[str]:
    """Which arguments that adapt it to an image size the constructor of a timm network accepts."""
    accepted = []
    for argument, value in SIZE_ARGUMENTS.items():
        with without_memory(), suppress(TypeError):  # an unexpected keyword argument
            timm.create_model(name, **{argument: value})
            accepted.append(argument)
    return accepted


def _create(arch: str, encoder: str, settings: dict[str, Any]) -> nn.Module:
    # of readout tokens that an encoder lacks: there is nothing the user can do
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encoder does not have prefix tokens")
        # Weights are never asked of smp here: it would go to the hub even when a checkpoint's weights follow.
        return smp.create_model(arch, encoder, encoder_weights=None, **settings)


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks built inside are on the meta device: they have shapes but no values, and cost milliseconds."""
    with torch.device("meta"), _LinspaceOnCpu():
        yield


class _LinspaceOnCpu(TorchFunctionMode):
    """Gives values to what networks read while they are built: the rates of stochastic depth."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs = {"device": "cpu", **kwargs}
        return func(*args, **kwargs)


def _keep_contiguous(network: nn.Module) -> None:
    """Keep the convolutions out of channels_last that oneDNN computes wrongly in it.

    The backward pass of a 1x1 convolution with a stride and fewer than 8 input channels writes past its
    memory on CPUs without AVX-512, which ends the process, and can return wrong gradients elsewhere:
    uxlfoundation/oneDNN#6035.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    for module in convolutions:
        if module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 8:
            # A 1x1 weight is contiguous in either format by torch's own test, so contiguous() would not copy
            # it.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous_input)


def _contiguous_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs)


def _alternatives(
    arch: str, encoder: str, options: DecoderOptions, size: Size, sides: Sequence[int]
) -> list[str]:
    """Three changes of one key that work; no more, because each trial costs a tenth of a second."""

    def works(
        arch: str = arch, encoder: str = encoder, depth: int | None = options.encoder_depth, size: Size = size
    ) -> bool:
        try:
            _fit(arch, encoder, _decoder_settings(arch, options._replace(encoder_depth=depth)), size)
        except (_UnfitError, InputError):
            return False
        return True

    sizes = (f"data.image_size={side}" for side in sides if works(size=(side, side)))
    archs = (f"model.arch={other}" for other in _similar_architectures(arch) if works(arch=other))
    encoders = (
        f"model.encoder={other}" for other in SAFE_ENCODERS if other != encoder and works(encoder=other)
    )
    depths = (f"model.encoder_depth={depth}" for depth in (5, 4, 3) if works(depth=depth))
    return list(islice(chain(islice(sizes, 1), islice(archs, 2), islice(encoders, 1), islice(depths, 1)), 3))


def _usual_sizes(encoder: str, size: Size) -> list[int]:
    """Sizes of square images that may work where `size` does not: the encoder's native one, and usual ones
    near it.
    """
    sides = [math.ceil(max(size) / step) * step for step in (224, 256)]
    if encoder.startswith("tu-") and (config := timm.get_pretrained_cfg(encoder.removeprefix("tu-"))):
        sides = [config.input_size[-1], *sides]
    return [side for side in dict.fromkeys(sides) if side % STRIDE == 0 and (side, side) != size]


def _similar_architectures(arch: str) -> list[str]:
    """The other architectures that may take the encoder: the most similarly named ones, then one of each
    kind.
    """
    others = sorted(
        ARCHITECTURES.keys() - {arch}, key=lambda other: -SequenceMatcher(None, arch, other).ratio()
    )
    kinds = [other for other in ("unet", "fpn", "segformer", "dpt") if other != arch]
    return list(dict.fromkeys([*others[:2], *kinds]))
