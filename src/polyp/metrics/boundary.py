"""How far apart the boundaries of prediction and truth run. MONAI finds the boundaries and measures the distances."""

import numpy as np
import torch

TOLERANCE = 0.01
"""Share of the image's diagonal by which a boundary may be off: 8 pixels at Kvasir-SEG's usual 622x530. Where
Kvasir-SEG has the same frame twice (three pairs that are the same polyp to their annotators), 91 to 94 % of the two
outlines lie within it."""

DEFINITIONS = {
    "nsd": (
        "Normalised surface Dice (Nikolov et al., 2021), per image: the share of both boundaries' pixels that lie "
        f"within {100 * TOLERANCE:g} % of the image's diagonal of the other boundary, mean over images; 1 if "
        "prediction and truth are both empty, 0 if one is."
    ),
    "hd95": (
        "95th-percentile Hausdorff distance, per image, in pixels of the original image: the larger of the 95th "
        "percentiles of the distances from each boundary to the other, mean over images; 0 if prediction and truth are "
        "both empty, the image's diagonal if one is."
    ),
}


def boundary_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Normalised surface Dice and 95th-percentile Hausdorff distance of one image.

    A mask's boundary is its pixels that touch the background or the image's edge, by a side.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.

    Returns:
        nsd (0 to 1) and hd95 (pixels), as in DEFINITIONS but before the mean over images.
    """
    from monai.metrics.utils import get_mask_edges, get_surface_distance  # a second, which training is spared

    diagonal = float(np.hypot(*truth.shape))
    if not (prediction.any() and truth.any()):
        alike = prediction.any() == truth.any()
        return {"nsd": float(alike), "hd95": 0.0 if alike else diagonal}
    one, other = get_mask_edges(torch.from_numpy(prediction), torch.from_numpy(truth))  # cropped to both masks
    distances = get_surface_distance(one, other), get_surface_distance(other, one)
    near = sum(int((each <= TOLERANCE * diagonal).sum()) for each in distances)
    return {
        "nsd": near / sum(len(each) for each in distances),
        "hd95": max(float(torch.quantile(each.double(), 0.95)) for each in distances),
    }
