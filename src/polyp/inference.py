"""Trained models at work: from images of any size to probabilities of that size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyp import device, runs
from polyp.checkpoints import load
from polyp.errors import InputError
from polyp.model.segmenter import PolypSegmenter

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What the operations that gain from it are computed in, by Lightning's name of the precision."""

FLIPS = ((), (-1,), (-2,), (-2, -1))
"""The axes that each view of test-time augmentation is flipped along: none, left-right, up-down, both."""


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


class Ensemble:
    """One model or several, whose probabilities are averaged.

    Args:
        models: at least one.
        used: the device to run on.
        flips: also see each image flipped left-right, up-down and both, and average (test-time augmentation).
        scales: of the resolution that the networks work at; the average over all is taken.
        precision: Lightning's name of it, or auto; only mixed ones change anything.
    """

    def __init__(
        self,
        models: Sequence[PolypSegmenter],
        used: torch.device,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        precision: str = "auto",
    ) -> None:
        self.models = [model.eval().to(used) for model in models]
        self.device = used
        self.views = [(scale, axes) for scale in scales for axes in (FLIPS if flips else FLIPS[:1])]
        self.precision = device.precision(precision, used.type)

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Polyp probabilities: of RGB images (3, H, W) uint8 a float32 (H, W) each, in 0-1, on the CPU."""
        moved = [image.to(self.device) for image in images]
        sums = [torch.zeros(image.shape[-2:], device=self.device) for image in images]
        half = HALF.get(str(self.precision))
        with torch.autocast(self.device.type, half, enabled=half is not None):
            for model in self.models:
                for scale, axes in self.views:
                    seen = model.predict([image.flip(axes) for image in moved], scale)
                    for total, probability in zip(sums, seen, strict=True):
                        total += probability.flip(axes)
        return [(total / (len(self.models) * len(self.views))).cpu() for total in sums]
