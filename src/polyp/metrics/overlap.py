"""The overlap of prediction and truth: Dice, IoU, precision and recall, for training, evaluation and the app.

`image_scores` scores images one by one, `SegmentationScores` accumulates them over a data set. Pixels whose
truth is `polyp.images.IGNORED` are left out of every number.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from polyp.images import IGNORED

_COUNTED = "per image, a pixel is polyp where its probability is >= 0.5, mean over images"

DEFINITIONS: dict[str, str] = {
    "dice": f"2 TP / (2 TP + FP + FN), {_COUNTED}; 1 if prediction and truth are both empty.",
    "iou": f"TP / (TP + FP + FN), {_COUNTED}; 1 if prediction and truth are both empty.",
    "precision": f"TP / (TP + FP), {_COUNTED}; for an empty prediction 1 if the truth is empty too, else 0.",
    "recall": f"TP / (TP + FN), {_COUNTED}; for an empty truth 1 if the prediction is empty too, else 0.",
    "mae": "Mean |probability - truth| over the pixels, per image, no threshold, mean over images.",
    "pooled_dice": (
        "2 TP / (2 TP + FP + FN), threshold 0.5, TP, FP and FN counted over all pixels of all images "
        "together; 1 if no pixel is polyp in prediction or truth. Large polyps weigh more than in dice: not "
        "comparable with it."
    ),
}

COUNTS = ("tp", "fp", "fn")
FAILURE = 0.5
"""A model fails on an image if its Dice is below this."""

MEANS = ("dice", "iou", "precision", "recall", "mae")


def _to_float(values: Tensor) -> Tensor:
    """As float64, or as float32 on Apple GPUs, which have no float64."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def ratios(tp: Tensor, fp: Tensor, fn: Tensor) -> dict[str, Tensor]:
    """dice, iou, precision and recall of pixel counts: int64 of any one shape; float64 of that shape."""
    is_empty = _to_float(tp + fp + fn == 0)

    def ratio(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, _to_float(part) / _to_float(whole.clamp_min(1)), is_empty)

    return {
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
    }


def _check(probability: Tensor, truth: Tensor, check_values: bool) -> tuple[Tensor, Tensor]:
    """Check the arguments of `image_scores`, and reshape probability and truth to (B, H, W)."""
    shape = tuple(probability.shape)
    if shape != tuple(truth.shape):
        raise ValueError(f"probability {shape} and truth {tuple(truth.shape)} must have the same shape")
    if len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[1] != 1):
        raise ValueError(f"need (H, W), (B, H, W) or (B, 1, H, W) with one channel, got {shape}")
    if 0 in shape:
        raise ValueError(f"no pixels in {shape}")
    if not probability.is_floating_point():
        raise ValueError(f"probability must be floating-point, got {probability.dtype}")
    if check_values:
        low, high = probability.aminmax()
        if not (low >= 0 and high <= 1):  # also when either is NaN
            message = f"probabilities must be in [0, 1], got {low:.3g} to {high:.3g}: are these logits?"
            raise ValueError(message)
        if not ((truth == 0) | (truth == 1) | (truth == IGNORED)).all():
            message = f"got {truth.min():.3g} to {truth.max():.3g}: is this a grey image?"
            raise ValueError(f"truth must be 0 or 1 (or {IGNORED}: ignored), {message}")
    height, width = shape[-2:]
    return probability.reshape(-1, height, width), truth.reshape(-1, height, width)


@torch.no_grad()
def image_scores(
    probability: Tensor, truth: Tensor, threshold: float = 0.5, check_values: bool = True
) -> dict[str, Tensor]:
    """Score each image by itself.

    Args:
        probability: (H, W), (B, H, W) or (B, 1, H, W), float in [0, 1]: the network's output after one
            sigmoid.
        truth: the same shape, values 0, 1 and `IGNORED`, any type.
        threshold: a pixel is predicted to be polyp where its probability is >= threshold.
        check_values: False for a training step, which must not wait for the GPU: only shapes and types are
            checked.

    Returns:
        Tensors of shape (B,), where (H, W) is a batch of one, on the device of the input. int64: the pixel
        counts tp, fp and fn. float64: dice, iou, precision, recall and mae as in DEFINITIONS but before the
        mean over images, and polyp_share, the truth's share of the pixels that count. All but mae are 1 if
        prediction and truth are both empty, and 0 if one is. An image of which no pixel counts scores like an
        empty one in which nothing is predicted.

    Raises:
        ValueError: shapes differ or there is more than one channel (a second, empty one would count as
            correct pixels); probabilities outside [0, 1] or NaN (logits, for example); truth with other
            values (those of a grey image, for example).
    """
    probability, truth = _check(probability, truth, check_values)
    counted, truth = truth != IGNORED, truth == 1
    predicted = (probability >= threshold) & counted
    pixels = (1, 2)
    tp = (predicted & truth).sum(pixels)  # a sum of bool is int64; float32 cannot count beyond 2^24 pixels
    fp = predicted.sum(pixels) - tp
    fn = truth.sum(pixels) - tp
    error = (probability.float() - truth.float()).abs() * counted
    count = _to_float(counted.sum(pixels).clamp_min(1))
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        **ratios(tp, fp, fn),
        "mae": _to_float(error.mean(pixels)) * counted[0].numel() / count,
        "polyp_share": _to_float(tp + fn) / count,
    }


class SegmentationScores(Metric):
    """Scores of a data set, batch by batch, over all processes; the sizes of batches do not matter."""

    full_state_update = False
    is_differentiable = False

    def __init__(self) -> None:
        super().__init__()
        for name in COUNTS + MEANS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Mapping[str, Tensor]) -> None:
        """Add images by their `image_scores`."""
        for name in COUNTS + MEANS:
            getattr(self, name).append(scores[name])

    def compute(self) -> dict[str, Tensor]:
        """The numbers of DEFINITIONS, float64 scalars, over all images since the last reset."""
        means = {name: dim_zero_cat(getattr(self, name)).mean() for name in MEANS}
        tp, fp, fn = (dim_zero_cat(getattr(self, name)).sum() for name in COUNTS)
        return means | {"pooled_dice": ratios(tp, fp, fn)["dice"]}
