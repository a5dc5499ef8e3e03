"""Pictures for people: the right parts, the right colours at the right places."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from polyp.errors import InputError
from polyp.images import IGNORED
from polyp.report import pictures
from polyp.report.pictures import GAP, PREDICTION, TRUTH


def disc(height: int, width: int, x: int, y: int, radius: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    return cv2.circle(mask, (x, y), radius, 1, -1)


def is_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(colour)).all(-1)


def parts(panel: np.ndarray, width: int) -> list[np.ndarray]:
    return [panel[:, start : start + width] for start in (0, width + GAP, 2 * (width + GAP))]


def border(mask: np.ndarray, reach: int = 2) -> np.ndarray:
    """The pixels within `reach` of the mask's outline."""
    kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
    return cv2.dilate(mask, kernel) != cv2.erode(mask, kernel)


HEIGHT, WIDTH = 90, 130
TRUE, FOUND = disc(HEIGHT, WIDTH, 40, 45, 20), disc(HEIGHT, WIDTH, 90, 40, 25)


def grey(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def test_panel_has_image_truth_and_prediction() -> None:
    image = grey()
    panel = pictures.panel(image, TRUE, FOUND * 0.8 + 0.1, 0.5)
    assert panel.shape == (HEIGHT, 3 * WIDTH + 2 * GAP, 3) and panel.dtype == np.uint8
    assert (panel[:, WIDTH : WIDTH + GAP] == 255).all()
    outlined, truth, prediction = parts(panel, WIDTH)

    assert is_colour(outlined, TRUTH).sum() > 60 and not (is_colour(outlined, TRUTH) & ~border(TRUE)).any()
    assert (
        is_colour(outlined, PREDICTION).sum() > 60
        and not (is_colour(outlined, PREDICTION) & ~border(FOUND)).any()
    )
    untouched = ~border(TRUE) & ~border(FOUND)
    assert (outlined[untouched] == 90).all()

    for part, mask, colour, other in (
        (truth, TRUE, TRUTH, PREDICTION),
        (prediction, FOUND, PREDICTION, TRUTH),
    ):
        inside = ~border(mask)
        assert np.array_equal(part[inside][:, 0] == 255, mask[inside] == 1)
        assert is_colour(part, colour).any() and not is_colour(part, other).any()
    assert (image == 90).all()  # drawn on a copy


def test_panel_applies_the_threshold() -> None:
    probability = np.where(FOUND > 0, 0.6, 0.3)
    for threshold, mask in ((0.5, FOUND), (0.6, FOUND), (0.61, FOUND * 0), (0.3, FOUND * 0 + 1)):
        prediction = parts(pictures.panel(grey(), TRUE, probability, threshold), WIDTH)[2]
        inside = ~border(mask)
        inside[[0, -1]] = inside[:, [0, -1]] = False
        assert np.array_equal(prediction[inside][:, 0] == 255, mask[inside] == 1), threshold


def test_empty_masks_have_no_outline() -> None:
    nothing = np.zeros((HEIGHT, WIDTH), np.uint8)
    outlined, truth, prediction = parts(
        pictures.panel(grey(), nothing, nothing.astype(np.float32), 0.5), WIDTH
    )
    assert (outlined == 90).all() and not truth.any() and not prediction.any()


def test_ignored_pixels_are_grey_and_have_no_outline() -> None:
    mask = TRUE.copy()
    mask[FOUND == 1] = IGNORED
    outlined, truth, _ = parts(pictures.panel(grey(), mask, np.zeros((HEIGHT, WIDTH)), 0.5), WIDTH)
    assert not (is_colour(outlined, TRUTH) & ~border(np.uint8(mask == 1))).any()
    untouched = ~border(np.uint8(mask == 1))
    assert np.array_equal(is_colour(truth, (128, 128, 128))[untouched], (mask == IGNORED)[untouched])


def test_contour_outlines_every_polyp() -> None:
    mask = disc(HEIGHT, WIDTH, 20, 20, 10) + disc(HEIGHT, WIDTH, 90, 60, 12)
    outlined = pictures.contour(grey(), mask.astype(bool), TRUTH)
    drawn = is_colour(outlined, TRUTH)
    assert drawn[:, :50].sum() > 30 and drawn[:, 60:].sum() > 30


def test_contour_width_grows_with_the_picture() -> None:
    small, large = (
        is_colour(pictures.contour(grey(s, s), disc(s, s, s // 2, s // 2, s // 4), TRUTH), TRUTH).mean()
        for s in (120, 960)
    )
    assert 0.5 < large / small < 2


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_sheet_has_every_panel_of_any_size(count: int) -> None:
    sizes = [(90, 130), (200, 100), (333, 500), (64, 64), (31, 257), (500, 40)][:count]
    shades = [40 * (n + 1) for n in range(count)]  # to know them again; white is what is between
    panels = [np.full((*size, 3), shade, np.uint8) for size, shade in zip(sizes, shades, strict=True)]
    sheet = pictures.sheet(panels, height=60)
    assert sheet.dtype == np.uint8 and sheet.shape[0] == -(-count // 2) * (60 + 2 * GAP)
    for number, (shade, (height, width)) in enumerate(zip(shades, sizes, strict=True)):
        rows, columns = np.nonzero((sheet == shade).all(-1))
        assert rows.max() - rows.min() + 1 == 60
        assert columns.max() - columns.min() + 1 == pytest.approx(60 * width / height, abs=1)
        left_half = columns.max() < sheet.shape[1] / 2
        assert left_half == (number % 2 == 0) or count == 1
    assert set(np.unique(sheet)) == {*shades, 255}


def test_sheet_has_captions_and_a_legend_above_the_panels() -> None:
    panels = [np.full((90, 130, 3), shade, np.uint8) for shade in (40, 80)]
    plain = pictures.sheet(panels, height=60)
    sheet = pictures.sheet(panels, ["a, Dice 0.9", "b"], pictures.LEGEND, height=60)
    assert sheet.shape[1] == plain.shape[1] and sheet.shape[0] > plain.shape[0]
    legend, captions = sheet[:15], sheet[20 : sheet.shape[0] - 60 - 2 * GAP]
    assert is_colour(legend, TRUTH).any() and is_colour(legend, PREDICTION).any()
    left, right = np.split(captions, 2, axis=1)
    assert is_colour(left, pictures.TEXT).sum() > is_colour(right, pictures.TEXT).sum() > 0
    for shade in (40, 80):
        assert (sheet == shade).all(-1).sum() == (plain == shade).all(-1).sum()


def test_saved_picture_is_lossless(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "new" / "polyp ÿ.png"
    pictures.save(path, picture)
    read = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(read[..., ::-1], picture)


@pytest.mark.parametrize("where", ["file/picture.png", "folder.png"])
def test_save_names_the_file_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError) as error:
        pictures.save(tmp_path / where, grey())
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_an_image_without_a_polyp_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    empty = np.zeros((40, 60), bool)
    assert (pictures.overlay(image, empty) == image).all()
    assert (pictures.contour(image.copy(), empty, pictures.TRUTH) == image).all()
