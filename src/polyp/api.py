"""polyp in Python: trained models that predict, evaluations, comparisons.

>>> import polyp
>>> model = polyp.load("outputs/runs/default/2026-11-23_10-00-00")
>>> prediction = model.predict("frame.png")
>>> prediction.probability.dtype, prediction.mask.dtype
(dtype('float32'), dtype('bool'))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.comparison import compare as compare_runs
from polyp.commands.compare.read_runs import find_runs
from polyp.commands.evaluate.options import Options as EvaluateOptions
from polyp.errors import InputError
from polyp.images import read_image
from polyp.inference.polyps import Prediction
from polyp.inference.predictor import Predictor, load_predictor

__all__ = ["Comparison", "Model", "Prediction", "compare", "evaluate", "load"]

PathLike = str | Path

Image = np.ndarray | PathLike
"""Pixels (H, W, 3) uint8 RGB, or the path of an image file."""


class Model:
    """A trained model, or several whose probabilities are averaged; `load` makes it.

    Args:
        predictor: computes the probabilities.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __repr__(self) -> str:
        """For instance "Model(exact, 32-true, cpu)"."""
        return f"Model({self.predictor.backend})"

    @property
    def threshold(self) -> float:
        """A pixel is polyp from this probability on, unless `predict` gets another threshold."""
        return self.predictor.threshold

    @overload
    def predict(self, images: Image, threshold: float | None = None) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[Image], threshold: float | None = None) -> list[Prediction]: ...

    def predict(
        self, images: Image | Sequence[Image], threshold: float | None = None
    ) -> Prediction | list[Prediction]:
        """Find the polyps of an image, or of several.

        Args:
            images: an array (H, W, 3) uint8 RGB or the path of an image; or a list of these, which may differ
                in size.
            threshold: of the mask, in 0-1; the model's own by default.

        Returns:
            A prediction, or one for each image of a list: `probability` (H, W) float32 in 0-1, `mask` (H, W)
            bool, and `polyps`, the largest first, each with its box, area, mean probability and centroid in
            pixels.

        Raises:
            InputError: a file cannot be read, or an array is no RGB image.

        >>> model = load("outputs/runs/default/2026-11-23_10-00-00")
        >>> first, second = model.predict([np.zeros((40, 60, 3), np.uint8), "frame.png"], threshold=0.999)
        >>> first.mask.shape, first.polyps
        ((40, 60), [])
        """
        threshold = self.threshold if threshold is None else threshold
        if isinstance(images, (str, Path, np.ndarray)):
            return Prediction(self.predictor.predict(_read(images)), threshold)
        probabilities = self.predictor.predict_all([_read(image) for image in images])
        return [Prediction(probability, threshold) for probability in probabilities]


def load(
    models: PathLike | Sequence[PathLike],
    device: str = "auto",
    compute: str = "exact",
    tta: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Model:
    """Load a trained model, or several, whose probabilities are then averaged.

    Args:
        models: the path of a run's folder, a checkpoint, or an ONNX file that `polyp export` wrote; or a list
            of these. The folder of a sweep over seeds or folds stands for its runs.
        device: auto, cpu, cuda, cuda:1 or mps.
        compute: exact, as the run was tested, or fast: images in batches, in the precision that is fastest on
            the device.
        tta: also predict each image flipped, and average.
        scales: multiples of the network's resolution; the average over all is taken.

    Raises:
        InputError: a model does not exist, is damaged, or cannot be used with these arguments.

    >>> load("outputs/runs/default/2026-11-23_10-00-00", device="cpu").threshold
    0.5
    """
    return Model(load_predictor(_names(models), compute, device, tta, tuple(scales)))


def evaluate(models: PathLike | Sequence[PathLike], **options: Any) -> dict[str, dict[str, Any]]:
    """Score a trained model, or the average of several, as `polyp evaluate` does; files and table included.

    Args:
        models: as for `load`.
        options: those of the command, such as data="my_polyps", tta=True or overwrite=True.

    Returns:
        The content of metrics.json for each set of images, by the set's name: "test" is the run's own,
        "out-of-fold" that of folds, "normal" the run's frames without polyps.

    Raises:
        InputError: a model or an option cannot be used.

    >>> run = "outputs/runs/default/2026-11-23_10-00-00"
    >>> metrics = evaluate(run, name="mine")["test"]  # doctest: +ELLIPSIS
    <BLANKLINE>
    ...
    >>> sorted(metrics["numbers"]["dice"])
    ['interval', 'n', 'value']
    """
    evaluations = EvaluateOptions(models=tuple(_names(models)), **options).run()
    return {metrics["images"]: metrics for metrics in evaluations}


def compare(*folders: PathLike) -> Comparison:
    """Compare runs as `polyp compare` does, without writing anything.

    Args:
        folders: runs, sweeps, or folders of these.

    Returns:
        The configurations, the best by validation first, and how the test Dice of each differs from the best
        one's.

    Raises:
        InputError: a folder does not exist, or nothing in it can be compared.

    >>> comparison = compare("outputs")
    >>> [(recipe.title, recipe.seeds) for recipe in comparison.recipes]
    [('#1 unet, mobilenet_v2', [0, 1])]
    >>> comparison.headline  # doctest: +ELLIPSIS
    'Best by validation: #1 unet, mobilenet_v2. Its test Dice is ...'
    """
    return compare_runs(find_runs([Path(folder) for folder in folders]))


def _names(models: PathLike | Sequence[PathLike]) -> list[str]:
    return [str(models)] if isinstance(models, (str, Path)) else [str(model) for model in models]


def _read(image: Image) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"an array {image.shape} of {image.dtype} is no image: give (H, W, 3) uint8 RGB")
    return np.array(image, order="C")  # torch takes no read-only or mirrored view
