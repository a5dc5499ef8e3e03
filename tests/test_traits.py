"""What an image and its mask are like: numbers of drawn shapes."""

import math

import cv2
import numpy as np
import pytest

from polyp.data.traits import STRATA, strata_of, traits
from polyp.images import components

TISSUE = (170, 90, 80)


def disc(height: int = 400, width: int = 500, radius: int = 80) -> np.ndarray:
    return cv2.circle(np.zeros((height, width), np.uint8), (width // 2, height // 2), radius, 1, -1)


def picture(height: int = 400, width: int = 500) -> np.ndarray:
    """Tissue in an octagonal field of view, whose corners are black."""
    image = np.zeros((height, width, 3), np.uint8)
    cut = 80
    corners = [(cut, 0), (width - cut, 0), (width, cut), (width, height - cut), (width - cut, height), (cut, height)]
    cv2.fillPoly(image, [np.array([*corners, (0, height - cut), (0, cut)])], TISSUE)
    noise = np.random.default_rng(0).integers(-12, 13, image.shape)
    return np.where(image > 0, np.clip(image + noise, 0, 255), 0).astype(np.uint8)


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
    row = traits(picture(), mask)
    assert list(row) == ["polyp_share", "polyps", "irregularity", "sharpness", "highlights", "overlay"]
    assert (row["polyp_share"], row["polyps"]) == (0.075, 2)


def test_irregularity_of_known_shapes() -> None:
    star = np.zeros((400, 500), np.uint8)
    for angle in range(0, 180, 30):
        cv2.ellipse(star, (250, 200), (150, 8), angle, 0, 360, 1, -1)
    square = np.zeros((400, 500), np.uint8)
    square[100:300, 100:300] = 1
    value = {
        name: traits(picture(), mask)["irregularity"] for name, mask in (("s", square), ("o", disc()), ("*", star))
    }
    assert value["s"] == pytest.approx(1 - math.pi / 4, abs=1e-9)
    assert value["o"] < 0.04
    assert value["*"] > 0.8


@pytest.mark.parametrize("factor", [0.5, 2])
def test_irregularity_does_not_depend_on_the_size_of_the_image(factor: float) -> None:
    oval = cv2.ellipse(np.zeros((400, 500), np.uint8), (250, 200), (180, 60), 20, 0, 360, 1, -1)
    other = cv2.resize(oval, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    first, second = (traits(np.zeros((*m.shape, 3), np.uint8), m)["irregularity"] for m in (oval, other))
    assert first == pytest.approx(second, abs=0.03)


def test_a_blurred_image_is_less_sharp_whatever_its_border_and_size() -> None:
    image = picture()
    blurred = np.where(image > 0, cv2.GaussianBlur(image, (0, 0), 4), 0).astype(np.uint8)
    sharp, soft = (traits(view, disc())["sharpness"] for view in (image, blurred))
    large = traits(cv2.resize(image, (1000, 800), interpolation=cv2.INTER_NEAREST), disc(800, 1000))["sharpness"]
    assert sharp > soft + 0.5
    assert large == pytest.approx(sharp, abs=0.2)


def test_highlights_are_a_share_of_the_field_of_view() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, :128] = TISSUE
    image[40:80, 20:60] = 255
    share = 1600 / (121 * 249)  # a frame of 3 pixels on each inner side of the field does not count
    assert traits(image, disc(256, 256))["highlights"] == pytest.approx(share, rel=0.1)
    assert traits(picture(), disc())["highlights"] == 0


@pytest.mark.parametrize(
    ("colour", "top", "right", "expected"),
    [((0, 0, 0), 260, 160, 1), ((3, 2, 4), 330, 200, 1), ((20, 165, 135), 260, 160, 1), (TISSUE, 260, 160, 0)],
)
def test_a_box_in_the_corner_is_an_overlay(colour: tuple[int, ...], top: int, right: int, expected: int) -> None:
    image = picture()
    image[top:, :right] = colour
    image = cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_COLOR)
    assert traits(image, disc())["overlay"] == expected


def test_black_borders_and_text_are_no_overlay() -> None:
    image = picture()
    cv2.putText(image, "12/03/2013", (5, 150), cv2.FONT_HERSHEY_PLAIN, 1, (255, 255, 255))
    assert traits(image, disc())["overlay"] == 0
    image[:, :60] = 0
    assert traits(image, disc())["overlay"] == 0
    image[-60:] = 0
    assert traits(image, disc())["overlay"] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (3, 2), (64, 64)])
@pytest.mark.parametrize("value", [0, 255])
def test_odd_images_have_traits(shape: tuple[int, int], value: int) -> None:
    for filled in (0, 1):
        row = traits(np.full((*shape, 3), value, np.uint8), np.full(shape, filled, np.uint8))
        assert math.isnan(row.pop("irregularity")) == (not filled)
        assert np.isfinite(list(row.values())).all()


# strata


def test_strata_of_a_row() -> None:
    row = {"polyp_share": 0.05, "polyps": 1, "irregularity": 0.1, "sharpness": 9, "highlights": 0, "overlay": 1}
    bins = {"size": "medium", "number": "one", "shape": "round", "blur": "sharp", "highlights": "few", "overlay": "box"}
    assert strata_of(row) == bins
    assert list(bins) == list(STRATA)


def test_missing_traits_leave_their_stratum_out() -> None:
    assert strata_of({"polyp_share": 0.0, "dice": 1.0}) == {"size": "none"}
    assert strata_of({"irregularity": math.nan, "polyps": 0}) == {"number": "none"}


def test_every_stratum_has_one_limit_fewer_than_bins() -> None:
    for stratum in STRATA.values():
        assert len(stratum.bins) == len(stratum.limits) + 1
        assert list(stratum.limits) == sorted(stratum.limits)
