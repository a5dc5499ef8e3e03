"""Weights to start from, of a network or an encoder, from a file or the hub; and their normalisation."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, TypeGuard
from urllib.parse import urlsplit
from zipfile import BadZipFile, is_zipfile

import huggingface_hub.constants
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as SMP_ENCODERS
from torch import Tensor, nn

from polyp.errors import InputError, describe_error, nearest
from polyp.files import check_zip
from polyp.model.fitting import is_encoder
from polyp.model.names import find_weights_file

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)

STATE_KEYS = ("state_dict", "model", "model_state_dict")
"""Under which keys checkpoints of Lightning, timm, torchvision and others hold their state dict."""

PREFIX = re.compile(r"((module|_orig_mod|model|net|network|backbone|encoder)\.)*(stages\.\d\.)?")
"""What may precede the names of a network in a file: the attributes of modules around it. A network of
polyp's is `network.stages.0.`.
"""

PARTS = ("", "encoder.", "encoder.model.", "encoder.model.model.")
"""What a file may be of: a network of smp, its encoder, or timm's network inside that."""

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
    if find_weights_file(weights) is not None:
        return
    if not is_encoder(encoder):
        return  # the network says so, with the nearest names
    is_timm = encoder.startswith("tu-")
    if is_timm and not timm.is_model_pretrained(encoder.removeprefix("tu-")):
        raise InputError(
            f"model.encoder_weights={weights}: timm has no weights for model.encoder={encoder}; use null"
        )
    names = ["imagenet"] if is_timm else list(SMP_ENCODERS[encoder]["pretrained_settings"])
    if weights not in names:
        raise InputError(
            f"model.encoder_weights={weights} is no file and no weights of model.encoder={encoder}: "
            f"{nearest(weights, [*names, 'null'])}"
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
    if (file := find_weights_file(weights)) is not None:
        state = _read(file, "encoder_weights")
        source = weights
    else:
        state = _from_hub(type(module), encoder, weights, options)
        source = f"{weights} for {encoder}"
    tensors = module.state_dict()
    absent = [name for name in tensors if name not in state]
    misshapen = [name for name in tensors if name in state and state[name].shape != tensors[name].shape]
    if absent or misshapen:
        example = (absent + misshapen)[0]
        raise InputError(
            f"model.encoder_weights={source} does not fit model.encoder={encoder}: of {len(tensors)} tensors "
            f"{len(absent)} are missing, {len(misshapen)} have another shape ({example}); give its own, "
            "or null"
        )
    # A shallower encoder has fewer layers than the file: those it has are all filled, which was checked
    # above.
    module.load_state_dict({name: state[name] for name in tensors})


def match_weights(file: Path, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file that fit a network by name and shape.

    Names match wherever `PREFIX` and `PARTS` allow it. A dot matches an underscore, since timm writes
    `stages_0` for `stages.0` in encoders. If two networks in the file fit equally, that is an error.

    Args:
        file: a checkpoint or a state dict of polyp, smp, timm, torchvision or an encoder of smp.
        network: a `PolypNetwork`; nothing in it changes.

    Returns:
        The tensors by the network's names. Normalisation is among them if the file has one and fills the
        encoder.

    Raises:
        InputError: the file cannot be read; nothing in it fits, or biases and other vectors alone; or it is
            not known which part is meant.
    """
    state = _read(file, "init_from")
    matches: dict[str, Tensor] = {}
    for number, stage in enumerate(network.get_submodule("stages").children()):
        prefix, keys = _match_stage(file, state, stage, number)
        matches |= {f"stages.{number}.{name}": state[key] for name, key in keys.items()}
        if all(name in keys for name in stage.state_dict() if name.startswith("encoder.")):
            around = prefix.removesuffix(f"stages.{number}.")
            for name in ("mean", "std"):
                if fits(value := state.get(around + name), network.get_buffer(name)):
                    matches[name] = value
    if not any(value.ndim > 1 for name, value in matches.items() if name.startswith("stages.")):
        raise InputError(
            f"model.init_from={file} has no weights that fit model.arch and model.encoder by name and shape "
            f"(its first is {next(iter(state), 'none')}): give weights of the same architecture or encoder"
        )
    return matches


def _match_stage(
    file: Path, state: Mapping[str, Tensor], stage: nn.Module, number: int
) -> tuple[str, dict[str, str]]:
    """The prefix under which most tensors of a stage are in a file, and these tensors' keys by name."""
    tensors = {name.replace(".", "_"): (name, tensor) for name, tensor in stage.state_dict().items()}
    candidates: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for key, value in state.items():
        cuts = [0, *(position + 1 for position, character in enumerate(key) if character == ".")]
        for cut, part in product(cuts, PARTS):
            name, tensor = tensors.get((part + key[cut:]).replace(".", "_"), ("", None))
            if tensor is not None and PREFIX.fullmatch(key, 0, cut) and fits(value, tensor):
                candidates[key[:cut], part][name] = key
    choices = [(prefix, keys) for (prefix, _), keys in candidates.items()]
    # of two networks that polyp has stacked, the stage of the same number
    choices = [choice for choice in choices if choice[0].endswith(f"stages.{number}.")] or choices
    most = max((len(keys) for _, keys in choices), default=0)
    best = [choice for choice in choices if len(choice[1]) == most]
    if any(keys != best[0][1] for _, keys in best):
        prefixes = " and ".join(repr(prefix) for prefix, _ in best)
        raise InputError(
            f"model.init_from={file} holds several networks that fit, with the prefixes {prefixes}: save the "
            "state dict of one of them"
        )
    return best[0] if best else ("", {})


def describe_match(fitting: Mapping[str, Tensor], network: nn.Module) -> str:
    """How many tensors of encoder and decoder were found in a file, and which were not."""
    names = [name for name in network.state_dict() if name.startswith("stages.")]
    encoder = [name for name in names if name.split(".")[2] == "encoder"]
    decoder = [name for name in names if name not in set(encoder)]
    counts = [f"{sum(name in fitting for name in part)} of {len(part)}" for part in (encoder, decoder)]
    text = f"{counts[0]} tensors of the encoder, {counts[1]} of the decoder"
    absent = [name for name in names if name not in fitting]
    rest = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    return f"{text}; not {', '.join(absent[:3])}{rest}" if absent else text


def fits(value: Any, tensor: Tensor) -> TypeGuard[Tensor]:
    """Whether a value can take the place of a tensor: numbers of the same kind in the same shape."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device == tensor.device
        and value.shape == tensor.shape
        and value.is_floating_point() == tensor.is_floating_point()
    )


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """The state dict in a file; `key` is the one of the configuration that names it."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            if is_zipfile(path):
                check_zip(path)
            state = torch.load(path, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"model.{key}={path} holds more than tensors and is not opened, since it could run code: save "
            "the state dict instead"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, BadZipFile) as error:
        raise InputError(f"model.{key}={path} cannot be read ({describe_error(error)})") from error
    if isinstance(state, dict):
        state = next((state[name] for name in STATE_KEYS if isinstance(state.get(name), dict)), state)
    if (
        not isinstance(state, dict)
        or not all(isinstance(name, str) for name in state)
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise InputError(f"model.{key}={path} holds no state dict: it must map names to tensors")
    return state


def _from_hub(
    kind: type[nn.Module], encoder: str, weights: str, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    is_timm = encoder.startswith("tu-")
    # Without this the hub's client tries again for up to 47 seconds; with it, what its cache holds still
    # loads.
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or not _hub_reachable()
    try:
        # smp loads depth-5 weights only into a depth-5 encoder, so the weights are taken from a whole one.
        if is_timm:  # dpt has its own class for them
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
