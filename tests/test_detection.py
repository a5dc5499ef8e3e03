import itertools

import numpy as np
import pytest
from masks import disc, odd_masks
from scipy.ndimage import label

from polyp.images import SPECK, components
from polyp.metrics.detection import detection_scores

MASKS = odd_masks()


def parts(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = label(mask, structure=np.ones((3, 3)))
    masks = [labels == number for number in range(1, count + 1)]
    return [part for part in masks if part.sum() >= SPECK * mask.size]


def expected(prediction: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Each polyp with each prediction."""
    predicted, polyps = parts(prediction), parts(truth)
    hits = sum(any((a & b).sum() / (a | b).sum() >= 0.5 for b in predicted) for a in polyps)
    matched = sum(any((a & b).sum() / (a | b).sum() >= 0.5 for a in polyps) for b in predicted)
    return {
        "polyps_found": hits,
        "polyps_missed": len(polyps) - hits,
        "false_positives": len(predicted) - matched,
    }


@pytest.mark.parametrize(("prediction", "truth"), list(itertools.product(MASKS, MASKS)))
def test_each_pair_of_components_says_the_same(prediction: str, truth: str) -> None:
    result = detection_scores(MASKS[prediction], MASKS[truth])
    assert result == expected(MASKS[prediction], MASKS[truth])
    swapped = detection_scores(MASKS[truth], MASKS[prediction])
    assert (result["polyps_missed"], result["false_positives"]) == (
        swapped["false_positives"],
        swapped["polyps_missed"],
    )


def test_by_hand() -> None:
    truth = np.zeros((100, 100), dtype=bool)
    truth[10:20, 10:20] = truth[50:60, 50:60] = truth[80:90, 10:20] = True
    prediction = np.zeros_like(truth)
    prediction[10:20, 10:15] = True  # half of it, IoU .5: found
    prediction[50:60, 56:66] = True  # IoU 40 / 160: missed, and a false positive
    prediction[30:35, 80:85] = True  # a false positive
    assert detection_scores(prediction, truth) == {
        "polyps_found": 1,
        "polyps_missed": 2,
        "false_positives": 2,
    }


def test_a_prediction_that_joins_two_polyps_finds_the_larger_or_none() -> None:
    truth = disc(50, 30, 20, (100, 200)) | disc(50, 160, 10, (100, 200))
    joined = truth.copy()
    joined[50, 30:160] = True
    assert detection_scores(joined, truth) == {"polyps_found": 1, "polyps_missed": 1, "false_positives": 0}


def test_specks_are_neither_polyps_nor_false_positives() -> None:
    truth = disc(250, 300, 60, (500, 600))
    truth[3, 3] = truth[480, 590] = True  # as JPEG compression leaves them
    prediction = truth.copy()
    prediction[100:105, 100:105] = True  # 25 of 300,000 pixels
    assert components(truth)[0] == 1
    assert detection_scores(prediction, truth) == {
        "polyps_found": 1,
        "polyps_missed": 0,
        "false_positives": 0,
    }
