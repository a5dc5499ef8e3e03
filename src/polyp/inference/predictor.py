"""Probabilities of images, computed in the same way by test, evaluate, compare, predict and app.

`exact` is the reference and the default: each image by itself, in the precision that the run was trained and
tested in. All commands then give bit-equal probabilities for a run on a device, whatever the other images.
`fast` computes several images at once, in the precision that is fastest on the device.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from polyp import files
from polyp.errors import InputError, pick
from polyp.model.exported import ExportedModel, open_exported
from polyp.runs.model import ModelSource, find_sources, load_checkpoint

if TYPE_CHECKING:  # an exported model needs neither torch nor Lightning, which take seconds to import
    import torch

    from polyp.model.segmenter import PolypSegmenter

T = TypeVar("T")

COMPUTE = ("exact", "fast")  # the values of --compute
BATCH, BATCH_PIXELS = 8, 2**24  # of `fast` at most: images, and pixels unless one image has more
COMPARED = 4  # images on which other computations are compared with `exact`
FLIPS = ((), (1,), (0,), (0, 1))  # axes of test-time augmentation: none, left-right, up-down, both


@dataclass(frozen=True, eq=False)
class Predictor:
    """One model or several, whose probabilities are averaged.

    Attributes:
        models: at least one, on `device`.
        device: of the models.
        sources: the sources of the models; empty for models that were not loaded from files.
        compute: exact or fast.
        flips: average over the image and its flips: left-right, up-down, both (test-time augmentation).
        scales: average over these multiples of the networks' resolution.
    """

    models: "Sequence[PolypSegmenter | ExportedModel]"
    device: "torch.device | str"
    sources: Sequence[ModelSource] = ()
    compute: str = "exact"
    flips: bool = False
    scales: Sequence[float] = (1.0,)

    @property
    def threshold(self) -> float:
        """The first model's threshold of masks."""
        return self.models[0].threshold

    @property
    def backend(self) -> str:
        """Computation, precision and device in words: "exact, bf16-mixed, cpu", or "onnx int8"."""
        descriptions = dict.fromkeys(
            f"{model.backend} {model.precision}"
            if isinstance(model, ExportedModel)
            else f"{self.compute}, {model.resolve_precision(self.compute == 'fast')}, {self.device}"
            for model in self.models
        )
        return " and ".join(descriptions)

    @property
    def is_exact(self) -> bool:
        """Whether this is the reference computation."""
        return self.compute == "exact" and not any(isinstance(model, ExportedModel) for model in self.models)

    def select(self, indices: Sequence[int]) -> "Predictor":
        """A predictor with some of the models only."""
        models, sources = [self.models[i] for i in indices], [self.sources[i] for i in indices]
        return replace(self, models=models, sources=sources)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Polyp probabilities (H, W) float32 in 0-1 of an image (H, W, 3) uint8 RGB.

        Raises:
            InputError: a model computes no probabilities, but for instance NaN.
        """
        return self.predict_all([image])[0]

    def predict_all(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`predict` for several images, which may differ in size."""
        sums = [np.zeros(image.shape[:2], np.float32) for image in images]
        for probabilities in self._predict_views(images):
            for total, probability in zip(sums, probabilities, strict=True):
                total += probability
        count = len(self.models) * len(self._transforms)
        return [total / count for total in sums]

    def spread(self, image: np.ndarray) -> np.ndarray:
        """The standard deviation (H, W) float32 in 0-0.5 of the probabilities between models and views."""
        return np.std([probability for [probability] in self._predict_views([image])], axis=0)

    def deviation(self, images: Sequence[np.ndarray]) -> float | None:
        """The largest difference of a probability to the exact computation's, on the first `COMPARED` images.

        Returns:
            None if it cannot be measured: the checkpoints of an exported model are not beside it.
        """
        if self.is_exact:
            return 0.0
        images = images[:COMPARED]
        exact = []  # for each model the probabilities of all images
        for model, source in zip(self.models, self.sources, strict=True):
            originals = [original.to(self.device) for original in _load_originals(model, source)]
            if not originals:
                return None
            predictor = replace(self, models=originals, sources=(), compute="exact")
            exact.append(predictor.predict_all(images))
        differences = [
            float(np.abs(probability - np.mean(expected, 0)).max())
            for probability, *expected in zip(self.predict_all(images), *exact, strict=True)
        ]
        return max(differences, default=0.0)

    def describe_deviation(self, images: Sequence[np.ndarray]) -> str:
        """`backend`, and how far it is from the exact computation, in a line; see `deviation`."""
        largest = self.deviation(images) if len(images) else None
        if largest is None:
            return f"{self.backend}: its difference to exact is not measured"
        count = len(images[:COMPARED])
        return f"{self.backend}: probabilities differ by up to {largest:.2g} from exact on {count} images"

    @property
    def _transforms(self) -> list[tuple[float, tuple[int, ...]]]:
        return list(product(self.scales, FLIPS if self.flips else FLIPS[:1]))

    def _predict_views(self, images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """The probabilities of all images, from each model and in each view."""
        for index, model in enumerate(self.models):
            for scale, axes in self._transforms:
                views = [np.ascontiguousarray(np.flip(image, axes)) for image in images]
                probabilities = _predict(model, views, scale, self.compute == "fast")
                for probability in probabilities:
                    low, high = probability.min(), probability.max()
                    if not (low >= 0 and high <= 1):  # also for NaN
                        name = self.sources[index].file if self.sources else "the model"
                        raise InputError(
                            f"{name} gives probabilities from {low:.3g} to {high:.3g}, which must lie in 0 "
                            "to 1: train it anew, in trainer.precision=32-true"
                        )
                yield [np.flip(probability, axes) for probability in probabilities]


def _predict(
    model: "PolypSegmenter | ExportedModel", images: Sequence[np.ndarray], scale: float, fast: bool
) -> list[np.ndarray]:
    """The probabilities (H, W) float32 of images (H, W, 3) uint8."""
    if isinstance(model, ExportedModel):
        return model.predict(images, scale, fast)
    import torch

    pixels = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    return [probability.cpu().numpy() for probability in model.predict(pixels, scale, fast)]


def _load_originals(model: "PolypSegmenter | ExportedModel", source: ModelSource) -> "list[PolypSegmenter]":
    """The checkpoints that a file was exported from, or the model itself; empty if they do not exist."""
    if not isinstance(model, ExportedModel):
        return [model]
    try:
        originals = find_sources([str(source.home)])
    except InputError:
        return []
    fingerprint = " ".join(files.fingerprint(original.file) for original in originals)
    if model.metadata["fingerprint"] != fingerprint:
        return []
    return [load_checkpoint(original).eval() for original in originals]


def predict_stream(
    predictor: Predictor, items: Iterable[tuple[T, np.ndarray]]
) -> Iterator[tuple[T, np.ndarray, np.ndarray]]:
    """Predict images as they come, up to `BATCH` at a time.

    Args:
        predictor: computes the probabilities.
        items: pairs of any object, such as a name, and an image (H, W, 3) uint8 RGB.

    Yields:
        The pairs in their order, each with the probabilities (H, W) float32.
    """

    def predict_batch() -> Iterator[tuple[T, np.ndarray, np.ndarray]]:
        probabilities = predictor.predict_all([image for _, image in batch]) if batch else []
        for (name, image), probability in zip(batch, probabilities, strict=True):
            yield name, image, probability

    batch: list[tuple[T, np.ndarray]] = []
    for item in items:
        if len(batch) == BATCH or sum(image.size for _, image in [*batch, item]) > 3 * BATCH_PIXELS:
            yield from predict_batch()
            batch.clear()
        batch.append(item)
    yield from predict_batch()


def load_predictor(
    names: Sequence[str],
    compute: str = "exact",
    device_name: str = "auto",
    flips: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Predictor:
    """Load models.

    Args:
        names: folders of runs or sweeps, checkpoints, or files that `polyp export` wrote.
        compute: exact or fast; an exported model computes as it was exported.
        device_name: auto, cpu, cuda, ...
        flips, scales: see `Predictor`.

    Raises:
        InputError: a model does not exist, or cannot be used with these arguments.
    """
    pick("--compute", compute, dict.fromkeys(COMPUTE))
    sources = find_sources(names)
    exported = [source for source in sources if source.is_exported]
    target: torch.device | str = "cpu"  # on which exported models run
    if not exported:
        from polyp.model import device

        target = device.choose(device_name)
    elif device_name not in ("auto", "cpu"):
        raise InputError(
            f"--device {device_name} cannot run {exported[0].file} here: leave it out, or give --device cpu"
        )
    models = [
        open_exported(source.file) if source.is_exported else load_checkpoint(source).eval().to(target)
        for source in sources
    ]
    for model in models:
        for scale in scales:
            model.check_scale(scale)
    return Predictor(models, target, sources, compute, flips, scales)
