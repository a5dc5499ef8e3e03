"""The models in runs and checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyp import runs
from polyp.checkpoints import load
from polyp.errors import InputError
from polyp.model.segmenter import PolypSegmenter


def best_model(folder: Path) -> PolypSegmenter:
    """The model of a run that validated best, with the averaged weights where the run averages them.

    Raises:
        InputError: the run has none, or as `load_model` does.
    """
    if not runs.best_checkpoint(folder).is_file():
        raise InputError(f"{folder} has no {runs.CHECKPOINTS}/best.ckpt: no epoch was trained and validated to its end")
    return load_model(runs.best_checkpoint(folder))


def load_model(file: Path) -> PolypSegmenter:
    """The model in a checkpoint, on the CPU whatever machine wrote it.

    Raises:
        InputError: the file is damaged, holds code, or is not one of polyp's.
    """
    if file.suffix == ".onnx":
        raise InputError(f"{file} is an exported model: give the checkpoint or the run that it was made from")
    content = load(file)
    settings, weights = (
        content.get(key) if isinstance(content, dict) else None for key in ("hyper_parameters", "state_dict")
    )
    if not isinstance(settings, dict) or not isinstance(weights, dict) or not {"arch", "encoder"} <= settings.keys():
        raise InputError(f"{file} is no checkpoint of polyp's: give a run's folder or its checkpoints/best.ckpt")
    try:
        model = PolypSegmenter(**settings | {"encoder_weights": None})
        model.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:  # other arguments, other weights
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{file} does not fit this version of polyp: {reason}") from error
    return model


def precision_of(config: Mapping[str, Any]) -> str:
    """The precision that a run of this configuration was scored in, by Lightning's name of it, or auto."""
    return str(config.get("trainer", {}).get("precision") or "32-true")
