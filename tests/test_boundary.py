import itertools

import numpy as np
import pytest
import torch
from masks import SHAPE, disc, odd_masks
from scipy.ndimage import binary_erosion, zoom
from scipy.spatial.distance import cdist

from polyp.metrics.boundary import TOLERANCE, boundary_scores

MASKS = odd_masks()
DIAGONAL = np.hypot(*SHAPE)


def outline(mask: np.ndarray) -> np.ndarray:
    """(K, 2): the pixels with a neighbour, by a side, that is background or outside the image."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations([m for m in MASKS if m != "empty"], 2)))
def test_scores_equal_those_of_all_pairs_of_boundary_pixels(a: str, b: str) -> None:
    distances = cdist(outline(MASKS[a]), outline(MASKS[b]))
    nearest = [distances.min(0), distances.min(1)]
    expected = {
        "nsd": np.mean(np.concatenate(nearest) <= TOLERANCE * DIAGONAL),
        "hd95": max(np.percentile(values, 95) for values in nearest),
    }
    assert boundary_scores(MASKS[a], MASKS[b]) == pytest.approx(expected)
    assert boundary_scores(MASKS[b], MASKS[a]) == pytest.approx(expected)
    assert 0 <= expected["nsd"] <= 1 and 0 <= expected["hd95"] <= DIAGONAL


# MONAI warns of a call of its own
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")
def test_scores_equal_those_of_monai() -> None:
    metrics = pytest.importorskip("monai.metrics")
    random = np.random.default_rng(0)
    for shape in [(60, 80), (300, 400), (97, 61)]:  # a tolerance of exactly 1 and 5 pixels, and another
        masks = [zoom(random.standard_normal((6, 6)), np.divide(shape, 6)) > 0.5 for _ in range(6)]
        for prediction, truth in itertools.combinations(masks, 2):
            batch = [torch.as_tensor(mask)[None, None] for mask in (prediction, truth)]
            tolerance = TOLERANCE * np.hypot(*shape)
            assert boundary_scores(prediction, truth) == pytest.approx(
                {
                    "nsd": metrics.compute_surface_dice(*batch, [tolerance], include_background=True).item(),
                    "hd95": metrics.compute_hausdorff_distance(
                        *batch, percentile=95, include_background=True
                    ).item(),
                },
                rel=1e-6,
            )


@pytest.mark.parametrize("name", MASKS)
def test_truth_scores_best_and_empty_mask_worst(name: str) -> None:
    mask, empty = MASKS[name], MASKS["empty"]
    assert boundary_scores(mask, mask) == {"nsd": 1, "hd95": 0}
    if mask.any():
        assert boundary_scores(mask, empty) == boundary_scores(empty, mask) == {"nsd": 0, "hd95": DIAGONAL}


def test_the_tolerance_grows_with_the_image() -> None:
    def shifted(shape: tuple[int, int], by: int) -> float:
        mask = disc(shape[0] / 2, shape[1] / 2, shape[0] / 4, shape)
        return boundary_scores(np.roll(mask, by, axis=1), mask)["nsd"]

    assert shifted((300, 400), 5) == 1  # the diagonal is 500
    assert shifted((300, 400), 10) < 1
    assert shifted((600, 800), 10) == 1


def test_a_correct_mask_that_is_eroded_gets_worse() -> None:
    truth = disc(60, 80, 40, (120, 160))
    eroded = [truth, *(binary_erosion(truth, iterations=k) for k in range(1, 12))]
    scores = [boundary_scores(mask, truth) for mask in eroded]
    nsd, hd95 = ([score[name] for score in scores] for name in ("nsd", "hd95"))
    assert nsd == sorted(nsd, reverse=True) and nsd[0] == 1 and nsd[-1] == 0
    assert hd95 == sorted(hd95) and hd95[0] == 0 < hd95[1]
