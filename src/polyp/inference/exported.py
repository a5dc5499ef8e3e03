"""What `polyp export` has left in a run's folder, and which of it is the fastest that is as good as the checkpoint."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyp import device, files, runs
from polyp.errors import InputError

RECORD = "export.json"

FILES = {"float32": "model.onnx", "float16": "model_fp16.onnx", "int8": "model_int8.onnx"}
"""The variants of an exported model."""

TOLERATED = 0.003
"""Dice that a variant may lose against the module in float32, to be taken in its place."""


def ready_on_cpu() -> str:
    """What a checkpoint is made ready for use as on this CPU, in words: bf16-mixed, folded."""
    return f"{device.precision('auto', 'cpu')}, folded"


def fastest(home: Path, checkpoint: Path, faster: bool) -> Path | None:
    """The exported model of a checkpoint that is fastest by the median, of those that lose no Dice to speak of.

    Args:
        home: the run's folder.
        checkpoint: what it must have been made from.
        faster: only if it was measured on this very machine and beats the checkpoint there.

    Returns:
        None if there is none.

    Raises:
        InputError: what is there is damaged.
    """
    record = home / runs.EXPORT / RECORD
    if not record.is_file() or find_spec("onnxruntime") is None:
        return None
    try:
        found = files.read_json(record)
        good = {
            name: _median(one)
            for name, one in found["onnx"].items()
            if one["validation_dice_loss"] <= TOLERATED and (home / runs.EXPORT / FILES[name]).is_file()
        }
        own = min(_median(one) for one in found["module"].values())
        if not good or found["fingerprint"] != files.fingerprint(checkpoint):
            return None
        name = min(good, key=lambda name: good[name])
        here = found["device"] == device.description("cpu") and ready_on_cpu() in found["module"]
        if faster and not (here and good[name] < own):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{record} is damaged: make it anew with polyp export {home} --onnx --overwrite") from error
    return home / runs.EXPORT / FILES[name]


def _median(measured: Mapping[str, Any]) -> float:
    return measured["latency_ms"]["median"]
