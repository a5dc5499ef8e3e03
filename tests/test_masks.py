"""Masks: what their files hold, and that nothing of it is dropped or guessed silently."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn import picture, write

from polyp.data.masks import AUTO, MaskCoding, read_mask
from polyp.data.pairs import Inspection, Pair, find_suspicions, inspect
from polyp.errors import InputError
from polyp.images import IGNORED

SIZE = (72, 96)
TRUTH = cv2.circle(np.zeros(SIZE, np.uint8), (30, 36), 14, 1, -1)
SECOND = cv2.circle(np.zeros(SIZE, np.uint8), (70, 36), 9, 1, -1)
BORDER = cv2.dilate(TRUTH, np.ones((3, 3), np.uint8)) - cv2.erode(TRUTH, np.ones((3, 3), np.uint8))
VOC = np.where(BORDER, 255, TRUTH).astype(np.uint8)  # 1 inside, 255 at the edge
VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def paint(*masks: tuple[np.ndarray, Sequence[int]], background: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """(H, W, 3) uint8 with a colour for each mask."""
    pixels = np.full((*SIZE, 3), background, np.uint8)
    for mask, colour in masks:
        pixels[mask > 0] = colour
    return pixels


NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
RED_AND_GREEN = paint((TRUTH, (255, 0, 0)), (SECOND, (0, 255, 0)))


def read_and_inspect(
    folder: Path, masks: Sequence[np.ndarray], ending: str = ".png", coding: MaskCoding = AUTO, **options: Any
) -> tuple[list[np.ndarray], Inspection]:
    """The masks that are read from files, and the inspection of a data set of them."""
    pairs = []
    for number, mask in enumerate(masks):
        image = write(folder / f"images/{number}.png", picture(number, mask.shape[:2]))  # type: ignore[arg-type]
        pairs.append(
            Pair(
                str(number), image, write(folder / f"masks/{number}{ending}", mask, **options), coding=coding
            )
        )
    inspection = inspect(pairs, [], allow_empty=True)
    return [pair.read()[1] for pair in pairs], inspection


def check_refusal(folder: Path, masks: Sequence[np.ndarray], *parts: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_and_inspect(folder, masks, **options)
    text = str(caught.value)
    assert "\n" not in text and "it is not clear what is polyp" in text, text
    assert all(part in text for part in parts), text
    return text


def error(mask: np.ndarray, truth: np.ndarray) -> float:
    """The share of pixels that are wrong, of the polyp's."""
    assert mask.shape == truth.shape and mask.dtype == np.uint8
    return float(np.mean(mask != truth) / max(truth.mean(), 1e-9))


# Two values


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"])
def test_black_and_white(tmp_path: Path, ending: str) -> None:
    (mask, second), inspection = read_and_inspect(tmp_path, [TRUTH * 255, SECOND * 255], ending)
    limit = 0.02 if ending in (".jpg", ".webp") else 0
    assert error(mask, TRUTH) <= limit and error(second, SECOND) <= limit
    assert not inspection.notes


@pytest.mark.parametrize("quality", [20, 50, 95])
def test_jpeg_s_noise_is_no_polyp(tmp_path: Path, quality: int) -> None:
    jpeg = cv2.imencode(".jpg", TRUTH * 255, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    repeated = cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)  # a JPEG that was saved as PNG
    noise = np.random.default_rng(0).integers(0, 12, SIZE).astype(np.uint8)
    (mask,), inspection = read_and_inspect(tmp_path / "saved again", [repeated])
    assert error(mask, TRUTH) < 0.03 and not inspection.notes
    (mask,), inspection = read_and_inspect(tmp_path / "empty", [noise], ".jpg", quality=quality)
    assert not mask.any() and not inspection.notes


@pytest.mark.parametrize("value", [1, 2, 100, 128, 200])
def test_any_two_values_are_accepted_and_said(tmp_path: Path, value: int) -> None:
    (mask, _), inspection = read_and_inspect(tmp_path, [TRUTH * value, SECOND * value])
    assert error(mask, TRUTH) == 0
    assert f"polyp is where they have {value}" in inspection.notes


def test_grey_jpeg_is_accepted_and_said(tmp_path: Path) -> None:
    (mask, _), inspection = read_and_inspect(tmp_path, [TRUTH * 110, SECOND * 110], ".jpg")
    assert error(mask, TRUTH) < 0.03 and "polyp is where they have" in inspection.notes


@pytest.mark.parametrize("value", [1, 1000, 65535])
def test_16_bits(tmp_path: Path, value: int) -> None:
    (mask,), inspection = read_and_inspect(tmp_path, [TRUTH.astype(np.uint16) * value])
    assert error(mask, TRUTH) == 0 and f"they have {value}" in inspection.notes


def test_16_bits_resized(tmp_path: Path) -> None:
    large = cv2.resize(TRUTH.astype(np.uint16) * 65535, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    (mask,), inspection = read_and_inspect(tmp_path, [large])
    assert error(mask, cv2.resize(TRUTH, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)) < 0.05
    assert not inspection.notes


def test_one_bit_and_palettes_and_transparency(tmp_path: Path) -> None:
    grey = np.repeat(TRUTH[..., None] * 255, 3, axis=2)
    opaque, clear = np.full(SIZE, 255, np.uint8), TRUTH * 255
    variants: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "one bit": (TRUTH.astype(bool), {}),
        "black and white palette": (TRUTH, {"palette": [0, 0, 0, 255, 255, 255]}),
        "white and black palette": (1 - TRUTH, {"palette": [255, 255, 255, 0, 0, 0]}),
        "VOC's palette": (TRUTH, {"palette": VOC_PALETTE}),
        "grey as RGB": (grey, {}),
        "opaque RGBA": (np.dstack([grey, opaque]), {}),
        "transparent background": (np.dstack([grey, clear]), {}),
        "white where it is opaque": (
            np.full((*SIZE, 4), 255, np.uint8) * np.dstack([*[opaque // 255] * 3, TRUTH]),
            {},
        ),
        "one colour": (paint((TRUTH, (255, 0, 0))), {}),
    }
    for name, (pixels, options) in variants.items():
        (mask,), _ = read_and_inspect(tmp_path / name, [pixels], **options)
        assert error(mask, TRUTH) == 0, name


@pytest.mark.parametrize("way", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST])
@pytest.mark.parametrize("factor", [0.6, 2, 3])
def test_resized_masks(tmp_path: Path, way: int, factor: float) -> None:
    square = np.zeros(SIZE, np.uint8)
    square[20:50, 30:60] = 1
    masks = [cv2.resize(m * 255, None, fx=factor, fy=factor, interpolation=way) for m in (TRUTH, square)]
    result, inspection = read_and_inspect(tmp_path, masks)
    assert not inspection.notes
    for mask, pixels in zip(result, masks, strict=True):
        assert error(mask, (pixels > 127).astype(np.uint8)) < 0.02


def test_antialiased_and_tiny_polyps(tmp_path: Path) -> None:
    discs = [cv2.circle(np.zeros(SIZE, np.uint8), (40, 36), r, 255, -1, cv2.LINE_AA) for r in (1, 3, 12)]
    dots = [cv2.circle(np.zeros(SIZE, np.uint8), (40, 36), r, 255, -1) for r in (0, 1, 2)]
    faint = cv2.resize(dots[1], None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    assert 0 < faint.max() < 240
    result, inspection = read_and_inspect(tmp_path, [*discs, *dots, faint])
    assert not inspection.notes
    for mask, pixels in zip(result[:-1], [*discs, *dots], strict=True):
        assert np.array_equal(mask, pixels > 127)
    assert 0 < result[-1].sum() <= np.count_nonzero(faint)


def test_full_empty_and_smallest_masks(tmp_path: Path) -> None:
    masks = [np.full(SIZE, 255, np.uint8), np.zeros(SIZE, np.uint8), np.full((1, 1), 255, np.uint8)]
    result, inspection = read_and_inspect(
        tmp_path, [*masks, np.zeros((1, 1), np.uint8), np.full((2, 1), 255, np.uint8)]
    )
    assert [mask.mean() for mask in result] == [1, 0, 1, 0, 1] == inspection.shares.tolist()


def test_a_trace_of_a_third_value_is_no_class(tmp_path: Path) -> None:
    mask = TRUTH * 255
    mask[2, 3:9] = 100
    (result,), inspection = read_and_inspect(tmp_path, [mask])
    assert error(result, TRUTH) == 0 and not inspection.notes


# What needs an answer: the message has the shares and the key


@pytest.mark.parametrize(
    ("mask", "options", "parts"),
    [
        (TRUTH + 2 * SECOND, {}, ("1 (", "2 (", "'data.polyp_values=[1,2]'")),
        (TRUTH * 127 + SECOND * 255, {}, ("127 (", "255 (", "data.ignore_value=255")),
        (VOC, {}, ("'data.polyp_values=[1]' data.ignore_value=255", "'data.polyp_values=[1,255]'")),
        (TRUTH + 2 * SECOND, {"palette": VOC_PALETTE}, ("palette", "'data.polyp_values=[1,2]'")),
        (RED_AND_GREEN, {}, ("colours", "\"data.polyp_values=['#00ff00','#ff0000']\"")),
        (RED_AND_GREEN, {"ending": ".jpg"}, ("colours", "\"data.polyp_values=['#00ff00','#ff0000']\"")),
        (TRUTH * 127 + SECOND * 255, {"ending": ".jpg"}, ("112 (", "255 (")),
        (TRUTH + 1, {}, ("1 (", "2 (", "'data.polyp_values=[2]'")),
        (paint((TRUTH, (255, 255, 0)), background=(0, 0, 255)), {}, ("\"data.polyp_values=['#ffff00']\"",)),
        (picture(1, SIZE), {}, ("colours",)),
        (NOISE, {}, ("colours",)),
        (NOISE, {"ending": ".jpg"}, ("colours",)),
        (NOISE[..., 0], {}, ("values",)),
        (picture(1, SIZE)[..., 0], {}, ("values",)),
    ],
    ids=[
        *("0 1 2", "0 127 255", "VOC", "palette", "BKAI", "BKAI as JPEG", "0 127 255 as JPEG", "1 2"),
        *("blue background", "photograph", "noise", "noise as JPEG", "grey noise", "grey photograph"),
    ],
)
def test_several_values_are_refused_in_one_message(
    tmp_path: Path, mask: np.ndarray, options: dict[str, Any], parts: Sequence[str]
) -> None:
    text = check_refusal(tmp_path, [mask] * 4, *parts, str(tmp_path / "masks"), **options)
    assert "%" in text and "only in" not in text


def test_two_colours_in_different_masks_are_several(tmp_path: Path) -> None:
    check_refusal(tmp_path, [paint((TRUTH, (255, 0, 0))), paint((SECOND, (0, 255, 0)))], "#00ff00", "#ff0000")


def test_an_odd_mask_among_many_is_named(tmp_path: Path) -> None:
    masks = [TRUTH * 255] * 20
    masks[7] = TRUTH
    text = check_refusal(tmp_path, masks, "1 (", "only in 7.png)")
    assert text.count("only in") == 1


# The user's answer


@pytest.mark.parametrize(
    ("mask", "values", "options", "truth"),
    [
        (TRUTH + 2 * SECOND, [1], {}, TRUTH),
        (TRUTH + 2 * SECOND, [1, 2], {}, TRUTH | SECOND),
        (TRUTH + 2 * SECOND, 2, {}, SECOND),
        (TRUTH + 2 * SECOND, "!= 0", {}, TRUTH | SECOND),
        (TRUTH + 2 * SECOND, ">= 2", {}, SECOND),
        (TRUTH + 2 * SECOND, [2], {"palette": VOC_PALETTE}, SECOND),
        (TRUTH + 2 * SECOND, ["#008000"], {"palette": VOC_PALETTE}, SECOND),
        (RED_AND_GREEN, ["#ff0000"], {}, TRUTH),
        (RED_AND_GREEN, ["#FF0000", "#00ff00"], {}, TRUTH | SECOND),
        (RED_AND_GREEN, "!= 0", {}, TRUTH | SECOND),
        (RED_AND_GREEN, ["#ff0000"], {"ending": ".jpg"}, TRUTH),
        (RED_AND_GREEN, ["#ff0000", "#00ff00"], {"ending": ".jpg"}, TRUTH | SECOND),
        (RED_AND_GREEN, "!= 0", {"ending": ".jpg"}, TRUTH | SECOND),
        (TRUTH * 127 + SECOND * 255, [127], {}, TRUTH),
        (TRUTH * 255, "!= 0", {"ending": ".jpg"}, TRUTH),
        (TRUTH * 255, "> 127", {"ending": ".jpg"}, TRUTH),
        (255 - TRUTH * 255, "== 0", {"ending": ".jpg"}, TRUTH),
        (255 - TRUTH * 255, [0], {}, TRUTH),
        (255 - TRUTH * 255, "< 100", {}, TRUTH),
        (paint((TRUTH, (255, 255, 0)), background=(0, 0, 255)), ["#ffff00"], {}, TRUTH),
        (TRUTH.astype(np.uint16) * 1000 + SECOND.astype(np.uint16) * 2000, [1000], {}, TRUTH),
    ],
)
def test_polyp_values(
    tmp_path: Path, mask: np.ndarray, values: Any, options: dict[str, Any], truth: np.ndarray
) -> None:
    (result,), inspection = read_and_inspect(tmp_path, [mask], coding=MaskCoding(values), **options)
    assert error(result, truth) <= (0.06 if "ending" in options else 0)
    assert inspection.notes.startswith("polyp is where a mask has")


def test_ignored_pixels_are_neither(tmp_path: Path) -> None:
    (result,), inspection = read_and_inspect(tmp_path, [VOC], coding=MaskCoding([1], 255))  # type: ignore[arg-type]
    assert np.array_equal(result == IGNORED, BORDER) and np.array_equal(result == 1, VOC == 1)
    expected = np.count_nonzero(VOC == 1) / np.count_nonzero(BORDER == 0)
    assert inspection.shares.tolist() == [np.float32(expected)]
    (repeated,), _ = read_and_inspect(tmp_path, [VOC], coding=MaskCoding(None, 255))  # 0 and 1 are two values
    assert np.array_equal(repeated, result)
    colours = paint((TRUTH, (255, 0, 0)), (SECOND, (255, 255, 255)))
    (result,), _ = read_and_inspect(tmp_path, [colours], coding=MaskCoding(["#ff0000"], "#ffffff"))  # type: ignore[arg-type]
    assert np.array_equal(result == 1, TRUTH) and np.array_equal(result == IGNORED, SECOND)


def test_a_value_does_not_take_the_background_of_a_compressed_mask(tmp_path: Path) -> None:
    (result,), _ = read_and_inspect(tmp_path, [TRUTH], ".jpg", MaskCoding([1]))  # type: ignore[arg-type]
    assert not result.any()


@pytest.mark.parametrize(
    ("values", "ignored"),
    [
        ([], None),
        ("red", None),
        ("=> 1", None),
        ([-1], None),
        ([1.5], None),
        ([True], None),
        (["#ff00"], None),
        ([1], "white"),
        ([1, 255], 255),
        ([70000], None),
        ({"a": 1}, None),
    ],
)
def test_values_that_cannot_be(values: Any, ignored: Any) -> None:
    with pytest.raises(InputError, match=r"data\.(polyp_values|ignore_value)") as caught:
        MaskCoding(values, ignored)
    assert "\n" not in str(caught.value)


def test_colours_and_numbers_are_not_mixed_up(tmp_path: Path) -> None:
    colours = write(tmp_path / "c.png", RED_AND_GREEN)
    with pytest.raises(InputError, match=r"c\.png: has colours.*polyp_values.*'#ff0000'"):
        read_mask(colours, MaskCoding((1,)))
    with pytest.raises(InputError, match=r"c\.png: has colours.*ignore_value.*'#ff0000'"):
        read_mask(colours, MaskCoding(("#ff0000",), 255))
    with pytest.raises(InputError, match=r"the masks have no colours.*numbers"):
        read_and_inspect(tmp_path, [TRUTH * 255] * 2, coding=MaskCoding(("#ff0000",)))


def test_a_mask_without_polyps_among_colours_is_empty(tmp_path: Path) -> None:
    masks, _ = read_and_inspect(
        tmp_path, [RED_AND_GREEN, RED_AND_GREEN * 0], coding=MaskCoding(("#ff0000",), "#00FF00")
    )
    assert (masks[0] == np.where(SECOND, IGNORED, TRUTH)).all() and not masks[1].any()


# Possible, but suspicious


@pytest.mark.parametrize(
    ("masks", "part"),
    [
        ([255 - 255 * TRUTH, 255 - 255 * SECOND], "look inverted or full"),
        ([np.full(SIZE, 255, np.uint8), 255 * (1 - SECOND)], "look inverted or full"),
        ([np.zeros(SIZE, np.uint8)] * 2, "no mask has a polyp"),
        ([TRUTH * 255] * 3, "all 3 masks are the same"),
    ],
)
def test_suspicions(tmp_path: Path, masks: list[np.ndarray], part: str) -> None:
    (suspicion,) = find_suspicions(read_and_inspect(tmp_path, masks)[1])
    assert part in suspicion


def test_usual_masks_are_not_suspicious(tmp_path: Path) -> None:
    large = cv2.circle(np.zeros(SIZE, np.uint8), (48, 36), 34, 255, -1)
    assert find_suspicions(read_and_inspect(tmp_path, [TRUTH * 255, SECOND * 255, large])[1]) == []
    assert find_suspicions(read_and_inspect(tmp_path, [TRUTH * 255])[1]) == []


def test_what_the_warning_says_to_add_helps(tmp_path: Path) -> None:
    masks = [255 - 255 * TRUTH, 255 - 255 * SECOND]
    (suspicion,) = find_suspicions(read_and_inspect(tmp_path, masks)[1])
    assert "\"data.polyp_values='== 0'\"" in suspicion
    (result, _), inspection = read_and_inspect(tmp_path, masks, coding=MaskCoding("== 0"))
    assert error(result, TRUTH) == 0 and not find_suspicions(inspection)
