"""The polyps that are found, whatever their size, and the false alarms."""

import numpy as np

from polyp.images import SPECK, components

IOU = 0.5
"""A polyp is found if a predicted component has at least this IoU with it."""

_COMPONENTS = f"connected components (8 neighbours) of at least {100 * SPECK:g} % of the image"

DEFINITIONS = {
    "polyp_recall": (
        f"The share of all images' polyps that are found. Polyps and predictions are {_COMPONENTS}; a polyp "
        f"is found if a predicted one has an IoU of at least {IOU} with it, one to one."
    ),
    "false_positives_per_image": f"Predictions that find no polyp, per image; they are {_COMPONENTS}.",
    "false_alarms": (
        "The share of the normal frames, images whose truth is empty, that have any prediction; these are "
        f"{_COMPONENTS}."
    ),
}


def detection_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Count the polyps_found, polyps_missed and false_positives of one image.

    Args:
        prediction, truth: (H, W) bool.
    """
    polyps, polyp_labels = components(truth)
    predictions, labels = components(prediction)
    shape = polyps + 1, predictions + 1
    overlap = np.bincount((polyp_labels * shape[1] + labels).ravel(), minlength=shape[0] * shape[1])
    overlap = overlap.reshape(shape)  # pixels of each pair of a polyp and a prediction
    union = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    # One prediction cannot have an IoU of .5 with two polyps: it would be their union, and they do not touch.
    hits = int((overlap >= IOU * union)[1:, 1:].any(axis=1).sum())
    return {"polyps_found": hits, "polyps_missed": polyps - hits, "false_positives": predictions - hits}
