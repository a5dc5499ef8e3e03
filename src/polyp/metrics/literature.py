"""The suite of the polyp literature, by PySODMetrics, which agrees with the field's Matlab code to 3e-4.

An extra, `literature`, since it holds numpy and OpenCV back.
"""

from importlib.util import find_spec

import numpy as np

from polyp.errors import install_command

_WHERE = "per image, the probabilities rounded to 256 steps and stretched to span 0 to 1, as the field does"
_CURVE = f"at each of 256 thresholds, {_WHERE}; mean over images"

DEFINITIONS = {
    "dice_mean": f"The literature's mean Dice: {_CURVE}, then the mean over thresholds; 0 if the truth is empty.",
    "dice_max": f"The literature's max Dice: {_CURVE}, then the largest over thresholds; 0 if the truth is empty.",
    "iou_mean": f"The literature's mean IoU: {_CURVE}, then the mean over thresholds; 0 if the truth is empty.",
    "iou_max": f"The literature's max IoU: {_CURVE}, then the largest over thresholds; 0 if the truth is empty.",
    "wfm": f"Weighted F-measure (Margolin et al., 2014), beta 1, {_WHERE}; mean over images; 0 if the truth is empty.",
    "sm": f"S-measure (Fan et al., 2017), alpha 0.5, {_WHERE}; mean over images.",
    "em_mean": f"Mean E-measure (Fan et al., 2018): {_CURVE}, then the mean over thresholds.",
    "em_max": f"Max E-measure (Fan et al., 2018): {_CURVE}, then the largest over thresholds.",
}

CURVES = ("dice", "iou", "em")
"""Numbers that are known at each threshold."""


def unavailable() -> str | None:
    """What to tell a user who lacks PySODMetrics, in one line; None for one who has it."""
    if find_spec("py_sod_metrics") is not None:
        return None
    return (
        "the literature's suite (mean and max Dice, weighted F, S- and E-measure) is left out: "
        f"for it, {install_command('literature')}"
    )


def literature_scores(probability: np.ndarray, truth: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Score one image.

    Args:
        probability: (H, W) float in [0, 1], rounded to 256 steps, as which the field saves predictions.
        truth: (H, W) bool.

    Returns:
        Numbers: wfm and sm, and dice_mean, iou_mean and em_mean, the means over thresholds. Vectors: dice_curve,
        iou_curve and em_curve, float32 (256,), from the highest threshold to the lowest, which DEFINITIONS' maxima are
        made of, by the mean over images.
    """
    import py_sod_metrics as sod

    class Smeasure(sod.Smeasure):
        """Of a quarter without pixels, where the polyp is centred on the image's last row or column, makes no NaN."""

        def ssim(self, pred: np.ndarray, gt: np.ndarray) -> float:
            return super().ssim(pred, gt) if pred.size else 0.0

    steps = np.rint(probability * 255).astype(np.uint8)
    stretched, truth = sod.utils.prepare_data(steps, truth * np.uint8(255))
    every = {"with_dynamic": True, "with_adaptive": False}
    counted = {"dice": sod.DICEHandler(**every), "iou": sod.IOUHandler(**every)}
    weighted, structure, aligned = sod.WeightedFmeasure(), Smeasure(), sod.Emeasure()
    for metric in (weighted, structure, aligned, sod.FmeasureV2(counted)):
        metric.step(stretched, truth, normalize=False)
    numbers = {"wfm": weighted.get_results()["wfm"], "sm": structure.get_results()["sm"]}
    curves = {name: handler.dynamic_results[0] for name, handler in counted.items()} | {"em": aligned.changeable_ems[0]}
    means = {f"{name}_mean": curves[name].mean() for name in CURVES}
    return (
        {name: float(value) for name, value in (numbers | means).items()},
        {f"{name}_curve": curve.astype(np.float32) for name, curve in curves.items()},
    )
