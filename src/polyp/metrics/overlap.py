"""How far prediction and truth overlap: Dice, IoU, precision, recall; training, evaluation and the app all count here.

`image_scores` scores images one by one, `SegmentationScores` gathers them over a data set.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_WHERE = "per image, a pixel is polyp where its probability is >= 0.5, mean over images"

DEFINITIONS: dict[str, str] = {
    "dice": f"2 TP / (2 TP + FP + FN), {_WHERE}; 1 if prediction and truth are both empty.",
    "iou": f"TP / (TP + FP + FN), {_WHERE}; 1 if prediction and truth are both empty.",
    "precision": f"TP / (TP + FP), {_WHERE}; for an empty prediction 1 if the truth is empty too, else 0.",
    "recall": f"TP / (TP + FN), {_WHERE}; for an empty truth 1 if the prediction is empty too, else 0.",
    "mae": "Mean |probability - truth| over the pixels, per image, no threshold, mean over images.",
    "pooled_dice": (
        "2 TP / (2 TP + FP + FN), threshold 0.5, TP, FP and FN counted over all pixels of all images together; 1 if no "
        "pixel is polyp in prediction or truth. Large polyps weigh more than in dice: not comparable with it."
    ),
}

COUNTS = ("tp", "fp", "fn")
FAILURE = 0.5
"""On an image whose Dice is below this, a model has failed."""

MEANS = ("dice", "iou", "precision", "recall", "mae")


def _precise(values: Tensor) -> Tensor:
    """As float64; Apple GPUs have none, there as float32."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def ratios(tp: Tensor, fp: Tensor, fn: Tensor) -> dict[str, Tensor]:
    """dice, iou, precision and recall of pixel counts: int64 of any one shape; float64 of that shape."""
    both_empty = _precise(tp + fp + fn == 0)

    def ratio(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, _precise(part) / _precise(whole.clamp_min(1)), both_empty)

    return {
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
    }


def _checked(probability: Tensor, truth: Tensor, values: bool) -> tuple[Tensor, Tensor]:
    """The two as (B, H, W), the truth as bool; ValueError if they cannot be what they should be.

    Looking at the `values` waits for a GPU to compute them; shapes and types cost nothing.
    """
    shape = tuple(probability.shape)
    if shape != tuple(truth.shape):
        raise ValueError(f"probability {shape} and truth {tuple(truth.shape)} must have the same shape")
    if len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[1] != 1):
        raise ValueError(f"need (H, W), (B, H, W) or (B, 1, H, W) with one channel, got {shape}")
    if 0 in shape:
        raise ValueError(f"no pixels in {shape}")
    if not probability.is_floating_point():
        raise ValueError(f"probability must be floating-point, got {probability.dtype}")
    if values:
        low, high = probability.aminmax()
        if not (low >= 0 and high <= 1):  # also when either is NaN
            raise ValueError(f"probabilities must be in [0, 1], got {low:.3g} to {high:.3g}: are these logits?")
        if not ((truth == 0) | (truth == 1)).all():
            raise ValueError(f"truth must be 0 or 1, got {truth.min():.3g} to {truth.max():.3g}: is this a grey image?")
    height, width = shape[-2:]
    return probability.reshape(-1, height, width), truth.reshape(-1, height, width) == 1


@torch.no_grad()
def image_scores(
    probability: Tensor, truth: Tensor, threshold: float = 0.5, check_values: bool = True
) -> dict[str, Tensor]:
    """Score each image by itself.

    Args:
        probability: (H, W), (B, H, W) or (B, 1, H, W), float in [0, 1]: the network's output after one sigmoid.
        truth: the same shape, values 0 and 1, any type.
        threshold: a pixel is predicted to be polyp where its probability is >= threshold.
        check_values: False for a training step, which must not wait for the GPU: only shapes and types are checked.

    Returns:
        Tensors of shape (B,), (H, W) being a batch of one, on the device of the input. int64: the pixel counts tp, fp
        and fn. float64: dice, iou, precision, recall and mae as in DEFINITIONS but before the mean over images, and
        polyp_share, the truth's share of the image. Prediction and truth both empty score 1 (mae aside); only one of
        them empty scores 0.

    Raises:
        ValueError: shapes differ or there is more than one channel (a second, empty channel would pass for more correct
            pixels); probabilities outside [0, 1] or NaN (logits, say); a truth with other values (0 and 255, say).
    """
    probability, truth = _checked(probability, truth, check_values)
    predicted = probability >= threshold
    pixels = (1, 2)
    tp = (predicted & truth).sum(pixels)  # a sum of bool is int64; float32 cannot count beyond 2^24 pixels
    fp = predicted.sum(pixels) - tp
    fn = truth.sum(pixels) - tp
    error = (probability.float() - truth.float()).abs()
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        **ratios(tp, fp, fn),
        "mae": _precise(error.mean(pixels)),
        "polyp_share": _precise(tp + fn) / truth[0].numel(),
    }


class SegmentationScores(Metric):
    """Scores of a data set, batch by batch; which images share a batch makes no difference.

    Keeps eight numbers per image, no pixels. Works across processes.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        """Start with no images; `kwargs` go to torchmetrics."""
        super().__init__(**kwargs)
        for name in COUNTS + MEANS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Mapping[str, Tensor]) -> None:
        """Add images by what `image_scores` says of them."""
        for name in COUNTS + MEANS:
            getattr(self, name).append(scores[name])

    def compute(self) -> dict[str, Tensor]:
        """The numbers of DEFINITIONS, float64 scalars, over all images since the last reset."""
        means = {name: dim_zero_cat(getattr(self, name)).mean() for name in MEANS}
        tp, fp, fn = (dim_zero_cat(getattr(self, name)).sum() for name in COUNTS)
        return means | {"pooled_dice": ratios(tp, fp, fn)["dice"]}
