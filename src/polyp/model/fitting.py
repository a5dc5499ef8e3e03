"""Which arguments make an architecture and an encoder work at an image size.

Found by building networks on torch's meta device, where they have shapes but no memory, in milliseconds.
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
from torch import nn
from torch.overrides import TorchFunctionMode

from polyp.errors import InputError, describe_error, pick
from polyp.model import device
from polyp.model.names import unknown_encoder

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


def pad_size(image_size: Sequence[int]) -> Size:
    """Height and width in pixels, each rounded up to a multiple of `STRIDE`."""
    height, width = (math.ceil(side / STRIDE) * STRIDE for side in image_size)
    return height, width


def check_encoder_name(encoder: Any) -> None:
    """Say so, with the nearest names, if neither smp nor timm has such an encoder.

    Raises:
        InputError: it is unknown.
    """
    if not isinstance(encoder, str):
        raise InputError(f"model.encoder={encoder} must be a name such as mobilenet_v2 or resnet34")
    if not is_encoder(encoder):
        raise unknown_encoder(encoder)


def is_encoder(name: str) -> bool:
    """Whether smp has an encoder of this name, or timm a model after the prefix tu-."""
    return timm.is_model(name.removeprefix("tu-")) if name.startswith("tu-") else name in SMP_ENCODERS


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
            archs = [
                name for name, cls in ARCHITECTURES.items() if "decoder_attention_type" in _arguments(cls)
            ]
            raise InputError(
                f"model.decoder_attention={attention} has no meaning for model.arch={arch}: leave it null, "
                f"or choose model.arch={' or '.join(archs)}"
            )
        settings["decoder_attention_type"] = pick("model.decoder_attention", attention, {"scse": "scse"})
    return settings


def _arguments(cls: type) -> list[str]:
    return list(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]


def find_settings(
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
            f"model.decoder_channels={options.decoder_channels} at {size[0]}x{size[1]} needs "
            f"{stages * needed / 2**30:.0f} GiB for its weights alone, more than half of this machine's "
            f"{device.memory() / 2**30:.0f} GiB of memory: choose a smaller one"
        )
    return settings


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
    output, needed = try_size(arch, encoder, settings, size)
    # smp's default upsampling fits one depth only; the trial tells which factor this depth needs.
    if output != size and "upsampling" in _arguments(ARCHITECTURES[arch]):
        default = inspect.signature(ARCHITECTURES[arch].__init__).parameters["upsampling"].default
        settings = settings | {"upsampling": default * size[0] // output[0]}
        output, needed = try_size(arch, encoder, settings, size)
    if output != size:
        raise ValueError(f"it returns {output[0]}x{output[1]} masks")
    return settings, needed


def try_size(arch: str, encoder: str, settings: dict[str, Any], size: Size) -> tuple[Size, int]:
    """Send an image without memory through a network without memory: the size of the answer, and its weights'
    bytes.

    Raises:
        _UnfitError: the network cannot be built, whatever the size.
        Exception: of any class; the size does not fit.
    """
    with without_memory(), torch.no_grad():
        try:
            network = create_network(arch, encoder, settings).eval()
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


def create_network(arch: str, encoder: str, settings: dict[str, Any]) -> nn.Module:
    """The encoder-decoder of smp with random weights; `settings` are its keyword arguments."""
    # smp warns of readout tokens that an encoder lacks, about which a user can do nothing.
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
    archs = (f"model.arch={name}" for name in _similar_architectures(arch) if works(arch=name))
    encoders = (f"model.encoder={name}" for name in SAFE_ENCODERS if name != encoder and works(encoder=name))
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
    """Architectures that may take the encoder: those with the most similar names, then one of each kind."""
    names = sorted(ARCHITECTURES.keys() - {arch}, key=lambda name: -SequenceMatcher(None, arch, name).ratio())
    kinds = [name for name in ("unet", "fpn", "segformer", "dpt") if name != arch]
    return list(dict.fromkeys([*names[:2], *kinds]))
