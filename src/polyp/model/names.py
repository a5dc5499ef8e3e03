"""Names of networks, encoders, losses and optimisers, and files of weights, checked without torch.

Importing torch, timm and smp takes seconds. The names of their classes and functions are read from their
source files instead, so that a mistyped name is reported at once.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyp.errors import InputError, nearest
from polyp.settings import collect, is_import_path, raise_together

LOSSES = ("bce", "dice", "dice_bce", "focal", "tversky", "structure", "lovasz")
SCHEDULES = ("cosine", "poly", "constant", "onecycle", "plateau")

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")
"""Of the files that encoder weights are read from."""


def check_names(model: Mapping[str, Any], optim: Mapping[str, Any]) -> None:
    """Check the names in the sections `model` and `optim` of a configuration.

    Everything that is not a text, and code of the user's, is left to the network and the optimiser.

    Raises:
        InputError: names are unknown; all of them, with the nearest that are known.
    """
    problems: list[str] = []
    loss, optimizer = model.get("loss"), optim.get("optimizer")
    checks: list[tuple[str, Any, Iterable[str], str]] = [
        ("model.arch", model.get("arch"), list_architectures(), "smp"),
        *(("model.loss", term, LOSSES, "") for term in (loss if isinstance(loss, Mapping) else [loss])),
        ("optim.optimizer", str(optimizer).lower() if optimizer else None, list_optimizers(), "optim"),
        ("optim.schedule", optim.get("schedule"), SCHEDULES, ""),
    ]
    for key, name, names, source in checks:
        if not isinstance(name, str) or is_import_path(name) or name in names:
            continue
        if not (source and _is_mentioned(name, source)):
            problems.append(f"{key}={name} is unknown: {nearest(name, names)}")
    with collect(problems):
        encoder = model.get("encoder")
        if isinstance(encoder, str) and encoder not in list_encoders():
            source = "timm" if encoder.startswith("tu-") else "encoders"
            if not _is_mentioned(encoder.removeprefix("tu-"), source):
                raise unknown_encoder(encoder)
    with collect(problems):
        if isinstance(weights := model.get("encoder_weights"), str):
            find_weights_file(weights)
    raise_together(problems)


def unknown_encoder(encoder: str) -> InputError:
    """The error of an encoder that neither smp nor timm has."""
    return InputError(f"model.encoder={encoder} is unknown: {nearest(encoder, list_encoders())}")


def find_weights_file(weights: str) -> Path | None:
    """The file that `model.encoder_weights` names; None if it is the name of weights.

    Raises:
        InputError: it is a folder, or a file that is not there.
    """
    path = Path(weights).expanduser()
    if not weights or not (weights.endswith(WEIGHTS_SUFFIXES) or path.exists()):
        return None
    if path.is_dir():
        raise InputError(f"model.encoder_weights={path} is a folder: give a file in it")
    if not path.exists():
        siblings = [str(file) for file in path.parent.glob("*") if file.suffix in WEIGHTS_SUFFIXES]
        existing = "give an existing .safetensors or .pt file, imagenet, or null"
        raise InputError(
            f"model.encoder_weights={path} is not there: "
            f"{nearest(str(path), siblings) if siblings else existing}"
        )
    return path


def list_architectures() -> list[str]:
    """The architectures of smp, in lower case."""
    return [name.lower() for name in re.findall(r"^    (\w+),$", _read("smp"), re.MULTILINE)]


def list_optimizers() -> list[str]:
    """The names that torch.optim exports, in lower case."""
    return [name.lower() for name in re.findall(r'^    "([A-Z]\w+)",$', _read("optim"), re.MULTILINE)]


@cache
def list_encoders() -> list[str]:
    """The encoders of smp, and with the prefix tu- the models of timm."""
    smp = re.findall(r'^    "([\w.-]+)": \{', _read("encoders"), re.MULTILINE)
    return smp + [f"tu-{name}" for name in re.findall(r"@register_model\s+def (\w+)\(", _read("timm"))]


def _is_mentioned(name: str, source: str) -> bool:
    """Whether a name that is not listed appears anywhere in the files, for instance as a former name.

    It is then left to the package, so that another style of its source cannot make a good name unknown.
    """
    return re.search(rf"\b{re.escape(name)}\b", _read(source), re.IGNORECASE) is not None


SOURCES = {
    "smp": ("segmentation_models_pytorch", "__init__.py"),
    "encoders": ("segmentation_models_pytorch", "encoders/*.py"),
    "timm": ("timm", "models/*.py"),
    "optim": ("torch", "optim/__init__.py"),
}
"""The packages and the files in them that have the names."""


@cache
def _read(source: str) -> str:
    """The text of some of a package's files. The package is found, but not imported."""
    package, pattern = SOURCES[source]
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None  # polyp depends on it
    return "\n".join(file.read_text("utf-8") for file in sorted(Path(spec.origin).parent.glob(pattern)))
