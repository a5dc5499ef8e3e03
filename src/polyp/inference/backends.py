"""Trained models made ready: which models, computed by what, on which device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from polyp import device
from polyp.errors import InputError, pick, require
from polyp.inference.ensemble import Ensemble
from polyp.inference.exported import fastest
from polyp.inference.folded import ready_for_cpu
from polyp.inference.onnx import OnnxModel
from polyp.inference.sources import Source
from polyp.model.segmenter import PolypSegmenter

BATCH, BATCH_PIXELS = 8, 2**24
"""Images that a network is best shown at once, and pixels that they have together at most, unless one has more."""


@dataclass(frozen=True)
class Predictor:
    """Models that are ready to be asked.

    Attributes:
        sources: where they come from; their probabilities are averaged.
        ensemble: the models.
        threshold: that masks are made with: the first model's own.
        backend: what computes, in words: "onnx int8", or "checkpoint, bf16-mixed, cpu".
    """

    sources: Sequence[Source]
    ensemble: Ensemble
    threshold: float
    backend: str

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Polyp probabilities (H, W) float32 in 0-1 of an image (H, W, 3) uint8 RGB.

        Raises:
            InputError: the network answers with NaN.
        """
        return self.predict_all([image])[0]

    def predict_all(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What `predict` gives, of several images at once, which may differ in size."""
        return [_checked(probability) for probability in self.ensemble.predict([_tensor(image) for image in images])]

    def spread(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `predict` gives, and the standard deviation (H, W) float32 in 0-0.5 between models and views."""
        mean, deviation = self.ensemble.spread([_tensor(image)])[0]
        return _checked(mean), deviation.numpy()


def open_models(given: Sequence[str], backend: str = "auto", used: str = "auto", tta: bool = False) -> Predictor:
    """Load models.

    Args:
        given: run folders, checkpoints, or ONNX files that `polyp export` wrote.
        backend: checkpoint, onnx, or auto, which takes the exported model of a run where that has been measured on this
            CPU to be faster than the checkpoint and as good.
        used: auto, cpu, cuda, ...
        tta: also see each image flipped, and average.

    Raises:
        InputError: one is not there, or cannot be used so.
    """
    pick("--backend", backend, dict.fromkeys(("auto", "checkpoint", "onnx")))
    sources = [Source.of(one) for one in given]
    if used == "auto" and (backend == "onnx" or any(source.file.suffix == ".onnx" for source in sources)):
        used = "cpu"  # where ONNX Runtime is
    target = device.choose(used)
    files = [_file(source, backend, target) for source in sources]
    models = [_load(source, file, target) for source, file in zip(sources, files, strict=True)]
    ensemble = Ensemble(models, target, tta)
    torchs = f"checkpoint, {ensemble.precision}, {ensemble.device}"
    words = [f"onnx {model.precision}" if isinstance(model, OnnxModel) else torchs for model in models]
    first = models[0]
    threshold = first.threshold if isinstance(first, OnnxModel) else first.hparams["threshold"]
    return Predictor(sources, ensemble, threshold, " and ".join(dict.fromkeys(words)))


def _file(source: Source, backend: str, used: torch.device) -> Path:
    """What is loaded: a checkpoint or an ONNX file."""
    exported = source.file.suffix == ".onnx"
    if backend == "onnx" or exported:
        if exported and backend == "checkpoint":
            raise InputError(f"{source.file} is no checkpoint: leave --backend checkpoint out, or give the run")
        if used.type != "cpu":
            raise InputError(f"--device {used} cannot run ONNX models here: leave it out, or give --device cpu")
        require("onnx", "onnxruntime")
    if exported or backend == "checkpoint" or used.type != "cpu" or not source.file.is_file():
        return source.file
    found = fastest(source.home, source.file, faster=backend == "auto")
    if found is None and backend == "onnx":
        raise InputError(
            f"{source.home} has no exported model of {source.file.name} that is as good: make one with "
            f"polyp export {source.home} --onnx"
        )
    return found or source.file


def _load(source: Source, file: Path, used: torch.device) -> PolypSegmenter | OnnxModel:
    if file.suffix == ".onnx":
        return OnnxModel(file)
    model = source.load()
    return ready_for_cpu(model) if used.type == "cpu" else model


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def _checked(probability: torch.Tensor) -> np.ndarray:
    if not probability.isfinite().all():
        raise InputError("the network answers with NaN: train it anew, or in 32-true")
    return probability.numpy()
