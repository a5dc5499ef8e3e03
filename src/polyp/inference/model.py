"""Trained models from Python: `load(RUN).predict(image)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import overload

import numpy as np

from polyp.errors import InputError
from polyp.images import read_image
from polyp.inference.polyps import Prediction
from polyp.inference.predictor import Predictor, load_predictor, predict_stream

Image = np.ndarray | str | Path
"""Pixels (H, W, 3) uint8 RGB, or the path of an image file."""


@dataclass(frozen=True)
class Model:
    """A trained model, or several whose probabilities are averaged; see `load`.

    Attributes:
        predictor: computes the probabilities.
        threshold: a pixel is polyp from this probability on.
    """

    predictor: Predictor
    threshold: float

    @overload
    def predict(self, images: Image) -> Prediction: ...

    @overload
    def predict(self, images: list[Image]) -> list[Prediction]: ...

    def predict(self, images: Image | Sequence[Image]) -> Prediction | list[Prediction]:
        """Find the polyps in an image, or in each image of a list.

        Args:
            images: an array (H, W, 3) uint8 RGB, the path of an image file, or a list of these, of any sizes.

        Returns:
            For each image its `probability` (H, W) float32 in 0-1, `mask` (H, W) bool and `polyps`.

        Raises:
            InputError: a file cannot be read, or an array has another shape or type.
        """
        if isinstance(images, np.ndarray | str | PathLike):
            return self.predict([images])[0]
        arrays = ((None, _load_array(image)) for image in images)
        return [Prediction(array, self.threshold) for *_, array in predict_stream(self.predictor, arrays)]


def load(
    *models: str | Path,
    threshold: float | None = None,
    compute: str = "exact",
    device: str = "auto",
    tta: bool = False,
) -> Model:
    """Load a trained model, or several whose probabilities are averaged.

    >>> model = load("outputs/runs/default/2026-11-23_10-00-00", device="cpu")
    >>> prediction = model.predict("frame.png")
    >>> prediction.probability.shape, prediction.probability.dtype, prediction.mask.dtype
    ((48, 64), dtype('float32'), dtype('bool'))
    >>> for polyp in prediction.polyps:
    ...     left, top, width, height = polyp.box
    ...     assert polyp.area <= width * height and polyp.probability >= model.threshold

    Args:
        models: run folders, checkpoints, or ONNX files that `polyp export` wrote.
        threshold: a pixel is polyp from this probability on; None for the first model's own.
        compute: exact, or fast: several images at once, in the precision that the device gains from.
        device: auto, cpu, cuda, cuda:1, ...
        tta: average over the image and its flips.

    Raises:
        InputError: there is no such model, or it cannot be used so.
    """
    if not models:
        raise InputError("give at least one model: a run's folder, a checkpoint or an ONNX file")
    predictor = load_predictor([str(model) for model in models], compute, device, tta)
    return Model(predictor, predictor.threshold if threshold is None else threshold)


def _load_array(image: Image) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"an image is {image.dtype} {image.shape}: it must be uint8 RGB, (height, width, 3)")
    return image
