"""What an image and its mask are like: numbers of drawn shapes."""

import math

import cv2
import numpy as np
import pytest

from polyp.data.traits import STRATA, group_by_stratum, measure_traits
from polyp.images import components

TISSUE = (170, 90, 80)


def disc(height: int = 400, width: int = 500, radius: int = 80) -> np.ndarray:
    return cv2.circle(np.zeros((height, width), np.uint8), (width // 2, height // 2), radius, 1, -1)


# components


def test_specks_are_no_polyps() -> None:
    mask = np.zeros((200, 100), np.uint8)  # .0001 of it are two pixels
    mask[0, 0] = 1
    mask[50:53, 50:53] = 1
    mask[53, 53] = 1  # touches by a corner
    mask[10:30, 10:30] = 1
    mask[90, 90:92] = 1
    count, labels = components(mask)
    assert (count, labels.dtype) == (3, np.int32)
    assert sorted(int((labels == n).sum()) for n in range(5)) == [0, 2, 10, 400, 20_000 - 412]
    assert labels[0, 0] == 0
    assert components(np.zeros((9, 9), np.uint8))[0] == 0


# traits


def test_share_and_number() -> None:
    mask = np.zeros((400, 500), np.uint8)
    mask[100:200, 100:200] = mask[300:350, 300:400] = 1
    row = measure_traits(mask)
    assert list(row) == ["polyp_share", "polyps", "irregularity"]
    assert (row["polyp_share"], row["polyps"]) == (0.075, 2)


def test_irregularity_of_known_shapes() -> None:
    star = np.zeros((400, 500), np.uint8)
    for angle in range(0, 180, 30):
        cv2.ellipse(star, (250, 200), (150, 8), angle, 0, 360, 1, -1)
    square = np.zeros((400, 500), np.uint8)
    square[100:300, 100:300] = 1
    of_square, of_disc, of_star = (measure_traits(mask)["irregularity"] for mask in (square, disc(), star))
    assert of_square == pytest.approx(1 - math.pi / 4, abs=1e-9)
    assert of_disc < 0.04
    assert of_star > 0.8


@pytest.mark.parametrize("factor", [0.5, 2])
def test_irregularity_does_not_depend_on_the_size_of_the_image(factor: float) -> None:
    oval = cv2.ellipse(np.zeros((400, 500), np.uint8), (250, 200), (180, 60), 20, 0, 360, 1, -1)
    resized = cv2.resize(oval, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    first, second = (measure_traits(mask)["irregularity"] for mask in (oval, resized))
    assert first == pytest.approx(second, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (3, 2), (64, 64)])
def test_odd_masks_have_traits(shape: tuple[int, int]) -> None:
    for filled in (0, 1):
        row = measure_traits(np.full(shape, filled, np.uint8))
        assert math.isnan(row.pop("irregularity")) == (not filled)
        assert row == {"polyp_share": filled, "polyps": filled}


# strata


def test_rows_are_grouped_by_stratum() -> None:
    first = {
        "polyp_share": 0.05,
        "polyps": 1,
        "irregularity": 0.1,
        "sharpness": 9,
    }  # older rows have more traits
    second = {"polyp_share": 1e-6, "polyps": 7, "irregularity": 1}
    third = {"polyp_share": 0.0, "irregularity": math.nan}
    assert group_by_stratum([first, second, third]) == {
        "size": {"none": [third], "small": [second], "medium": [first]},
        "number": {"one": [first], "several": [second]},
        "shape": {"round": [first], "irregular": [second]},
    }


def test_every_bin_has_a_meaning_and_bins_ascend() -> None:
    for stratum in STRATA.values():
        assert list(stratum.bins) == list(stratum.meanings)
        assert list(stratum.bins.values()) == sorted(stratum.bins.values())
