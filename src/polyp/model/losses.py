"""Losses, by name, as a weighted sum or by import path: `build_loss("dice_bce")(logits, target)`.

Below, p = sigmoid(logit) is a pixel's probability and t in {0, 1} its truth. Every formula takes logits,
never probabilities. "Pooled" means that the sums run over all pixels of the batch together.

Ignored pixels change neither loss nor gradient. `Loss` gives them t = 0 and a logit with p = 0, so that they
add 0 to every sum below; `counted` (bool) is False there, for the denominators of means.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss, TverskyLoss
from torch import Tensor, nn

from polyp.errors import InputError, describe_error, pick
from polyp.images import IGNORED
from polyp.settings import import_object, is_import_path

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits, target (both float32) and counted (bool), (B, 1, H, W) each, to a scalar."""

BACKGROUND = -1e4
"""A logit that float32 knows as p = 0, with a cross-entropy of exactly 0 at t = 0."""


def _correction(counted: Tensor) -> Tensor:
    """What turns a mean over all elements into the mean over those that count: exactly 1 if all do."""
    count = counted.sum()
    return torch.full_like(count, counted.numel()) / count.clamp_min(1)  # a number / count would be rounded


def bce(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Binary cross-entropy: mean of -t log p - (1 - t) log(1 - p). An empty mask counts like any other."""
    return F.binary_cross_entropy_with_logits(logits, target) * _correction(counted)


def dice(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Soft Dice, pooled: 1 - 2 Σpt / (Σp + Σt) (Milletari et al., V-Net, 3DV 2016, without the squares).

    No smoothing: an inverted mask costs 1, a perfect one 0. False alarms on an empty mask cost as long as
    another image of the batch has a polyp; where the whole batch is empty, loss and gradient are 0.
    """
    return DiceLoss("binary")(logits, target)


def dice_bce(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Soft Dice plus binary cross-entropy, both with weight 1. A batch of empty masks is left to the
    cross-entropy.
    """
    return dice(logits, target, counted) + bce(logits, target, counted)


def focal(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Focal loss: mean of -(1 - q)² log q with q = p where t = 1, else 1 - p (Lin et al., ICCV 2017, equation
    4).

    γ = 2 as in the paper, without its class weight α. An empty mask counts like any other.
    """
    return FocalLoss("binary", alpha=None, gamma=2.0)(logits, target) * _correction(counted)


def tversky(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Tversky loss, pooled: 1 - TP / (TP + 0.3 FP + 0.7 FN) with TP = Σpt, FP = Σp(1 - t), FN = Σ(1 - p)t.

    Missing a pixel costs more than inventing one (Salehi et al., MLMI 2017; their best weights). A batch of
    empty masks costs 0, as with `dice`.
    """
    return TverskyLoss("binary", alpha=0.3, beta=0.7)(logits, target)


def structure(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Boundary-weighted cross-entropy plus boundary-weighted IoU (Wei et al., F3Net, AAAI 2020; the loss of
    PraNet).

    With w = 1 + 5 |m - t|, where m is the mean of t in the 31 × 31 pixels around a pixel, per image (ignored
    pixels are left out of m and have w = 0):
        Σ w·bce / Σ w   +   1 - (1 + Σ w·p·t) / (1 + Σ w·(p + t - p·t))

    The weights count per pixel, as in the paper. In the code published with it they cancel out of the first
    term: its `reduce="none"` makes the cross-entropy a single number before it is weighted. As in the paper,
    m is a mean over the image's own pixels; that code pads with zeros, which draws a boundary where the frame
    cuts a polyp. As in the code, the first term is divided by Σ w and the second has the + 1: the paper's
    formulas divide by 0 on an empty mask.

    An empty mask has w = 1 and leaves the plain cross-entropy plus 1 - 1 / (1 + Σ p): false alarms cost.
    """
    mean = _sum_around(target) / _sum_around(counted.float()).clamp_min(1)
    weight = (1 + 5 * (mean - target).abs()) * counted
    pixels = (1, 2, 3)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weighted_bce = (weight * cross_entropy).sum(pixels) / weight.sum(pixels).clamp_min(1)
    probability = logits.sigmoid()
    intersection = (weight * probability * target).sum(pixels)
    union = (weight * (probability + target)).sum(pixels) - intersection
    return (weighted_bce + 1 - (1 + intersection) / (1 + union)).mean() * _correction(counted.any((1, 2, 3)))


def _sum_around(values: Tensor) -> Tensor:
    """The sum over the 31 x 31 pixels around a pixel, inside the image; exact for whole numbers.

    Of rows, then of columns. 31 = 1 + 2 + 4 + 8 + 16, and a sum over 2 n neighbours is that of two over n:
    eight additions for each pixel, where pooling has 31.
    """
    for dim, padding in ((-1, (15, 15)), (-2, (0, 0, 15, 15))):
        size, start = values.shape[dim], 1
        sums = F.pad(values, padding)
        values = sums.narrow(dim, 0, size)
        for width in (1, 2, 4, 8):
            count = sums.shape[dim] - width
            sums = sums.narrow(dim, 0, count) + sums.narrow(dim, width, count)
            values = values + sums.narrow(dim, start, size)
            start += 2 * width
    return values


def lovasz(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Lovász hinge: a convex surrogate of 1 - IoU of each image, averaged over images (Berman et al., CVPR
    2018, section 3.1).

    With the errors m = max(0, 1 - logit (2t - 1)) of an image's pixels in falling order, and J(k) = 1 - IoU
    of a mask that is wrong in the first k of them: Σ m_k (J(k) - J(k - 1)). Ignored pixels have m = 0.

    On an empty mask a single wrong pixel makes J = 1: it costs max(0, 1 + the largest logit), so false alarms
    cost, but only the worst pixel has a gradient. Frames without polyps need a second term, such as bce.
    """
    return LovaszLoss("binary", per_image=True)(logits, target) * _correction(counted.any((1, 2, 3)))


LOSSES: dict[str, Formula] = {
    "bce": bce,
    "dice": dice,
    "dice_bce": dice_bce,
    "focal": focal,
    "tversky": tversky,
    "structure": structure,
    "lovasz": lovasz,
}


class Loss(nn.Module):
    """A weighted sum of formulas as a module, with its inputs checked and in float32. It has no state."""

    def __init__(self, terms: Sequence[tuple[float, Formula]]) -> None:
        super().__init__()
        self.terms = terms

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Score a batch.

        Args:
            logits: (B, 1, H, W), any floating type; sums over pixels need more digits than autocast's
                bfloat16 has.
            target: (B, 1, H, W), values 0, 1 and `polyp.images.IGNORED`, any type.

        Returns:
            A float32 scalar >= 0; 0 if no pixel counts.

        Raises:
            ValueError: the shapes differ or have more than one channel, which smp's losses would score along
                unseen.
        """
        if logits.shape != target.shape or logits.ndim != 4 or logits.shape[1] != 1:
            raise ValueError(
                f"need logits and target (B, 1, H, W), got {tuple(logits.shape)} and {tuple(target.shape)}"
            )
        ignored = target == IGNORED
        logits = logits.to(torch.float32).masked_fill(ignored, BACKGROUND)
        target = target.to(torch.float32).masked_fill(ignored, 0)
        losses = [weight * formula(logits, target, ~ignored) for weight, formula in self.terms]
        return torch.stack(losses).sum()


def build_loss(loss: str | Mapping[str, float]) -> Loss:
    """Make a loss.

    Args:
        loss: a key of `LOSSES`, the import path of a function, see `_import_formula`, or the weight of each
            of several.

    Raises:
        InputError: a name is unknown, a weight is no number above 0, or a function cannot be used.
    """
    weights = loss if isinstance(loss, Mapping) else {loss: 1}
    if not weights:
        raise InputError("model.loss={} has no terms: give a name, or weights such as {dice: 1, bce: 0.5}")
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise InputError(
                f"model.loss: the weight of {name} is {weight}, and must be a number above 0; leave out a "
                "term that is not wanted"
            )
    return Loss(
        [
            (weight, _import_formula(name) if is_import_path(name) else pick("model.loss", name, LOSSES))
            for name, weight in weights.items()
        ]
    )


def _import_formula(name: str) -> Formula:
    """The user's own loss: a function of logits and target, float32 (B, 1, H, W) each, that returns a scalar.

    An ignored pixel is a background pixel that the network is certain of, with logit -10000 and t = 0: it
    changes no sum over predicted or true polyp pixels, but it counts in a mean over all pixels.
    """
    function = import_object("model.loss", name)
    if not callable(function) or isinstance(function, type):
        raise InputError(f"model.loss={name} is no function: give the import path of one")

    def formula(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        value: Tensor = function(logits, target)
        return value

    if isinstance(function, nn.Module) and function.state_dict():
        raise InputError(f"model.loss={name} has weights or buffers, and a loss must have none")
    logits = torch.linspace(-1, 1, 2 * 64 * 64).reshape(2, 1, 64, 64).requires_grad_()
    try:
        value = formula(logits, (logits.detach() > 0).float(), torch.ones_like(logits, dtype=torch.bool))
        if not isinstance(value, Tensor) or value.shape != () or not value.is_floating_point():
            raise TypeError(f"it returns {_describe(value)} instead of a floating-point scalar")
        value.backward()
    except Exception as error:  # whatever the user's function raises
        raise InputError(
            f"model.loss={name} does not work for logits and target of shape (2, 1, 64, 64): "
            f"{describe_error(error)}"
        ) from error
    return formula


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return f"a value of the type {type(value).__name__}"
