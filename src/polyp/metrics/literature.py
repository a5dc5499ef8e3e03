"""The suite of the polyp literature, by PySODMetrics, which agrees with the field's Matlab code to 3e-4.

An extra, since it needs older versions of numpy and OpenCV.
"""

from importlib.util import find_spec

import numpy as np

from polyp.errors import install_command

_SCALE = "per image, the probabilities rounded to 256 steps and stretched to span 0 to 1, as the field does"
_CURVE = f"at each of 256 thresholds, {_SCALE}; mean over images"
_MEAN = f"{_CURVE}, then the mean over thresholds"
_MAX = f"{_CURVE}, then the largest over thresholds"
_EMPTY = "0 if the truth is empty"

DEFINITIONS = {
    "dice_mean": f"The literature's mean Dice: {_MEAN}; {_EMPTY}.",
    "dice_max": f"The literature's max Dice: {_MAX}; {_EMPTY}.",
    "iou_mean": f"The literature's mean IoU: {_MEAN}; {_EMPTY}.",
    "iou_max": f"The literature's max IoU: {_MAX}; {_EMPTY}.",
    "wfm": f"Weighted F-measure (Margolin et al., 2014), beta 1, {_SCALE}; mean over images; {_EMPTY}.",
    "sm": f"S-measure (Fan et al., 2017), alpha 0.5, {_SCALE}; mean over images.",
    "em_mean": f"Mean E-measure (Fan et al., 2018): {_MEAN}.",
    "em_max": f"Max E-measure (Fan et al., 2018): {_MAX}.",
}

CURVES = ("dice", "iou", "em")
"""Numbers with a value at each threshold."""


def unavailable() -> str | None:
    """A message for the user, in one line, if PySODMetrics is not installed; otherwise None."""
    if find_spec("py_sod_metrics") is not None:
        return None
    return (
        "the literature's suite (mean and max Dice, weighted F, S- and E-measure) is left out: "
        f"for it, {install_command('literature')}"
    )


def literature_scores(
    probability: np.ndarray, truth: np.ndarray, counted: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Score one image.

    Args:
        probability: (H, W) float in [0, 1], rounded to 256 steps, as which the field saves predictions.
        truth: (H, W) bool.
        counted: (H, W) bool, at least one pixel; the others, where truth is False, are left out of dice, iou,
            em and the stretching, and are background for wfm and sm.

    Returns:
        Numbers: wfm, sm, and the means over thresholds dice_mean, iou_mean and em_mean. Vectors, for the
            maxima of DEFINITIONS: dice_curve, iou_curve and em_curve, float32 (256,), from the highest
            threshold to the lowest.
    """
    import py_sod_metrics as sod

    class Smeasure(sod.Smeasure):
        """Returns 0 instead of NaN for an empty quarter, where the centre is in the last row or column."""

        def ssim(self, pred: np.ndarray, gt: np.ndarray) -> float:
            return super().ssim(pred, gt) if pred.size else 0.0

    steps = np.rint(probability[counted] * 255).astype(np.uint8)
    pixels, polyp = sod.utils.prepare_data(steps[None], truth[counted][None] * np.uint8(255))
    stretched = np.zeros(truth.shape)
    stretched[counted] = pixels[0]
    options = {"with_dynamic": True, "with_adaptive": False}
    handlers = {"dice": sod.DICEHandler(**options), "iou": sod.IOUHandler(**options)}
    weighted, structure, aligned = sod.WeightedFmeasure(), Smeasure(), sod.Emeasure()
    for metric in (weighted, structure):
        metric.step(stretched, truth, normalize=False)
    for metric in (aligned, sod.FmeasureV2(handlers)):
        metric.step(pixels, polyp, normalize=False)
    numbers = {"wfm": weighted.get_results()["wfm"], "sm": structure.get_results()["sm"]}
    curves = {name: handler.dynamic_results[0] for name, handler in handlers.items()}
    curves["em"] = aligned.changeable_ems[0]
    means = {f"{name}_mean": curves[name].mean() for name in CURVES}
    return (
        {name: float(value) for name, value in (numbers | means).items()},
        {f"{name}_curve": curve.astype(np.float32) for name, curve in curves.items()},
    )
