"""One model or several, seen as one: from images of any size to probabilities of that size."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from polyp import device
from polyp.inference.onnx import OnnxModel
from polyp.model.segmenter import PolypSegmenter

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What the operations that gain from it are computed in, by Lightning's name of the precision."""

FLIPS = ((), (-1,), (-2,), (-2, -1))
"""The axes that each view of test-time augmentation is flipped along: none, left-right, up-down, both."""


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
        models: Sequence[PolypSegmenter | OnnxModel],
        used: torch.device,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        precision: str = "auto",
    ) -> None:
        self.models: list[PolypSegmenter | OnnxModel] = [model.eval().to(used) for model in models]
        self.device = used
        self.views = [(scale, axes) for scale in scales for axes in (FLIPS if flips else FLIPS[:1])]
        self.precision = device.precision(precision, used.type)

    def predict(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Polyp probabilities: of RGB images (3, H, W) uint8 a float32 (H, W) each, in 0-1, on the CPU."""
        sums = [torch.zeros(image.shape[-2:]) for image in images]
        for seen in self._each(images):
            for total, probability in zip(sums, seen, strict=True):
                total += probability
        return [total / (len(self.models) * len(self.views)) for total in sums]

    def spread(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What `predict` gives, and how far models and views are apart: each pixel's standard deviation, in 0-0.5."""
        seen = zip(*self._each(images), strict=True)
        return [(all_views.mean(0), all_views.std(0, correction=0)) for all_views in map(torch.stack, map(list, seen))]

    @torch.inference_mode()
    def _each(self, images: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """The probabilities of all images, from each model and in each view."""
        half = HALF.get(str(self.precision))
        for model in self.models:
            for scale, axes in self.views:
                with torch.autocast(self.device.type, half, enabled=half is not None):
                    seen = model.predict([image.flip(axes) for image in images], scale)
                yield [probability.flip(axes).cpu() for probability in seen]
