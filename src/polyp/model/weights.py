"""Encoder weights: from a file, from the hub, or none; and the normalisation that goes with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as SMP_ENCODERS
from torch import Tensor, nn

from polyp.errors import InputError, describe_error, nearest

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)

FILE_SUFFIXES = (".safetensors", ".pt", ".pth")
HUB_SECONDS = 5
"""How long to wait for a first answer of the hub."""


def normalisation(encoder: str, weights: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation per RGB channel, of pixels in 0-1, that the encoder was pretrained with.

    smp asks its hub for them at each start; kept here, a checkpoint or a weights file needs no network.
    """
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return (config.mean, config.std) if config else IMAGENET
    if (
        encoder in ("inceptionresnetv2", "inceptionv4", "xception")
        or weights == "advprop"
        or "lite" in encoder
    ):
        return HALF
    return DPN if encoder.startswith("dpn") else IMAGENET


def _file(weights: str) -> Path | None:
    path = Path(weights).expanduser()
    return path if weights.endswith(FILE_SUFFIXES) or (weights and path.exists()) else None


def check_encoder_weights(encoder: str, weights: str | None) -> None:
    """Find out whether there are such weights, without reading or downloading them.

    Args:
        encoder: its name.
        weights: as in `load_encoder_weights`, or None.

    Raises:
        InputError: the file is not there, or the encoder has no weights of this name.
    """
    if weights is None:
        return
    if (path := _file(weights)) is not None:
        if path.is_dir():
            raise InputError(f"model.encoder_weights={path} is a folder: give a file in it")
        if not path.exists():
            siblings = [str(file) for file in path.parent.glob("*") if file.suffix in FILE_SUFFIXES]
            existing = "give an existing .safetensors or .pt file, imagenet, or null"
            raise InputError(
                f"model.encoder_weights={path} is not there: "
                f"{nearest(str(path), siblings) if siblings else existing}"
            )
        return
    timms = encoder.startswith("tu-")
    if not timms and encoder not in SMP_ENCODERS:
        return  # the network says so, with the nearest names
    if timms and not timm.is_model_pretrained(encoder.removeprefix("tu-")):
        raise InputError(
            f"model.encoder_weights={weights}: timm has no weights for model.encoder={encoder}; use null"
        )
    known = ["imagenet"] if timms else list(SMP_ENCODERS[encoder]["pretrained_settings"])
    if weights not in known:
        raise InputError(
            f"model.encoder_weights={weights} is no file and no weights of model.encoder={encoder}: "
            f"{nearest(weights, [*known, 'null'])}"
        )


def load_encoder_weights(
    module: nn.Module, encoder: str, weights: str, options: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Fill an encoder with pretrained weights.

    Args:
        module: the encoder inside an smp network.
        encoder: its name.
        weights: the path of a .safetensors or .pt file with the encoder's state dict, or a name that smp
            knows.
        options: what a timm encoder was made with so that it works at the image size; timm adapts the hub's
            weights.

    Raises:
        InputError: no such file or name, weights of another encoder, or the hub is out of reach.
    """
    check_encoder_weights(encoder, weights)
    if (file := _file(weights)) is not None:
        state = _read(file)
        source = weights
    else:
        state = _from_hub(type(module), encoder, weights, options)
        source = f"{weights} for {encoder}"
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    other_shape = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or other_shape:
        example = (missing + other_shape)[0]
        raise InputError(
            f"model.encoder_weights={source} does not fit model.encoder={encoder}: of {len(own)} tensors "
            f"{len(missing)} are missing, {len(other_shape)} have another shape ({example}); give its own, "
            "or null"
        )
    # A shallower encoder has fewer layers than the file: those it has are all filled, which was checked
    # above.
    module.load_state_dict({name: state[name] for name in own})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except UnpicklingError as error:
        raise InputError(
            f"model.encoder_weights={path} holds more than tensors and is not opened, since it could run "
            "code: save the encoder's state dict instead"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"model.encoder_weights={path} cannot be read ({describe_error(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"model.encoder_weights={path} holds no state dict: it must map names to tensors")
    return state


def _from_hub(
    kind: type[nn.Module], encoder: str, weights: str, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    timms = encoder.startswith("tu-")
    # Without this the hub's client tries again for up to 47 seconds; with it, what its cache holds still
    # loads.
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or not _hub_reachable()
    try:
        # smp loads depth-5 weights only into a depth-5 encoder, so the weights are taken from a whole one.
        if timms:  # dpt has its own class for them
            whole = kind(name=encoder.removeprefix("tu-"), pretrained=True, **options)
        else:
            whole = smp.encoders.get_encoder(encoder, weights=weights)
    except OSError as error:  # the hub's errors are all of this kind
        raise InputError(
            f"model.encoder_weights={weights}: cannot reach {_hub_host()} and its cache has no weights for "
            f"{encoder}; give a file with model.encoder_weights=PATH.safetensors, or start from random "
            "weights with null"
        ) from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
    return whole.state_dict()


def _hub_host() -> str:
    return urlsplit(huggingface_hub.constants.ENDPOINT).hostname or huggingface_hub.constants.ENDPOINT


def _hub_reachable() -> bool:
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception:  # whatever the HTTP library raises, it means that there is no answer
        return False
    return True
