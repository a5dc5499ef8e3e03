"""Trained models made ready: which models, computed by what, on which device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from polyp import device, runs
from polyp.errors import InputError
from polyp.evaluation.sources import Source
from polyp.inference.ensemble import Ensemble
from polyp.inference.models import best_model, load_model


@dataclass(frozen=True)
class Predictor:
    """Models that are ready to be asked.

    Attributes:
        sources: where they come from; their probabilities are averaged.
        ensemble: the models.
        threshold: that masks are made with: the first model's own.
        backend: what computes, in words: "checkpoint, bf16-mixed, cpu".
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
        given: run folders or checkpoints.
        backend: auto, checkpoint or onnx.
        used: auto, cpu, cuda, ...
        tta: also see each image flipped, and average.

    Raises:
        InputError: one is not there, or cannot be used so.
    """
    sources = [Source.of(one) for one in given]
    models = [best_model(s.home) if s.file == runs.best_checkpoint(s.home) else load_model(s.file) for s in sources]
    ensemble = Ensemble(models, device.choose(used), tta)
    return Predictor(
        sources, ensemble, models[0].hparams["threshold"], f"checkpoint, {ensemble.precision}, {ensemble.device}"
    )


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def _checked(probability: torch.Tensor) -> np.ndarray:
    if not probability.isfinite().all():
        raise InputError("the network answers with NaN: train it anew, or in 32-true")
    return probability.numpy()
