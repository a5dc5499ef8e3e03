"""The polyps that are found, whatever their size, and the false alarms."""

import numpy as np

from polyp.images import SPECK, components

FOUND = 0.5
"""A polyp is found if a predicted component has at least this IoU with it."""

_PARTS = f"connected components (8 neighbours) of at least {100 * SPECK:g} % of the image"

_NORMAL = "normal frames, images whose truth is empty"

DEFINITIONS = {
    "polyp_recall": (
        f"The share of all images' polyps that are found. Polyps and predictions are {_PARTS}; a polyp is "
        f"found if a predicted one has an IoU of at least {FOUND} with it, one to one."
    ),
    "false_positives_per_image": f"Predictions that find no polyp, per image; they are {_PARTS}.",
    "false_alarms": f"The share of the {_NORMAL}, that have any prediction; these are {_PARTS}.",
}


def detection_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Count the polyps of one image.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.

    Returns:
        polyps_found, polyps_missed and false_positives.
    """
    (rows, truths), (columns, predictions) = components(truth), components(prediction)
    both = np.bincount((truths * (columns + 1) + predictions).ravel(), minlength=(rows + 1) * (columns + 1))
    both = both.reshape(rows + 1, columns + 1)  # the pixels that each pair shares
    union = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    # One prediction cannot have an IoU of .5 with two polyps: it would be their union, and they do not touch.
    found = int((both >= FOUND * union)[1:, 1:].any(axis=1).sum())
    return {
        "polyps_found": found,
        "polyps_missed": rows - found,
        "false_positives": columns - found,
    }
