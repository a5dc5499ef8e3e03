"""How far apart the boundaries of prediction and truth are."""

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

TOLERANCE = 0.01
"""Share of the image's diagonal by which a boundary may be off: 8 pixels at Kvasir-SEG's usual 622x530. Of
the two outlines of a frame that Kvasir-SEG has twice (three such pairs), 91 to 94 % lie within it."""

DEFINITIONS = {
    "nsd": (
        "Normalised surface Dice (Nikolov et al., 2021), per image: the share of both boundaries' pixels "
        f"that lie within {100 * TOLERANCE:g} % of the image's diagonal of the other boundary, mean over "
        "images; 1 if prediction and truth are both empty, 0 if one is."
    ),
    "hd95": (
        "95th-percentile Hausdorff distance, per image, in pixels of the original image: the larger of the "
        "95th percentiles of the distances from each boundary to the other, mean over images; 0 if "
        "prediction and truth are both empty, the image's diagonal if one is."
    ),
}


def boundary_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Normalised surface Dice and 95th-percentile Hausdorff distance of one image.

    A mask's boundary is its pixels that touch the background or the image's edge by a side. Distances are
    float32, so that the numbers equal those of MONAI.

    Args:
        prediction, truth: (H, W) bool.

    Returns:
        nsd (0 to 1) and hd95 (pixels), as in DEFINITIONS but before the mean over images.
    """
    diagonal = float(np.hypot(*truth.shape))
    if not (prediction.any() and truth.any()):
        equal = prediction.any() == truth.any()
        return {"nsd": float(equal), "hd95": 0.0 if equal else diagonal}
    a, b = (np.argwhere(mask & ~binary_erosion(mask)) for mask in (prediction, truth))
    distances = [KDTree(b).query(a)[0].astype(np.float32), KDTree(a).query(b)[0].astype(np.float32)]
    within = np.concatenate(distances) <= np.float32(TOLERANCE * diagonal)
    return {
        "nsd": int(within.sum()) / len(within),
        "hd95": max(float(np.quantile(values.astype(np.float64), 0.95)) for values in distances),
    }
