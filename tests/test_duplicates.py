"""Images that show the same."""

import cv2
import numpy as np
import pytest

from polyp.data.drawing import draw
from polyp.data.duplicates import Link, field_thumbnail, find_links, group_images, perceptual_hash, thumbnail


def drawn(count: int, height: int = 200, width: int = 240) -> list[np.ndarray]:
    """Smooth pictures that have nothing in common."""
    rng = np.random.default_rng(0)
    small = rng.integers(40, 220, (count, 7, 8, 3), np.uint8)
    return [cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC) for picture in small]


def compressed(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)


def bordered(image: np.ndarray) -> np.ndarray:
    """With a black border, and a green box in the corner."""
    image = image.copy()
    image[140:, :80] = 20, 165, 135
    return cv2.copyMakeBorder(image, 20, 25, 60, 10, cv2.BORDER_CONSTANT)


def linked(images: list[np.ndarray]) -> set[tuple[int, int]]:
    links = find_links(
        *(np.stack([function(image) for image in images]) for function in (thumbnail, field_thumbnail))
    )
    return {(link.first, link.second) for link in links}


@pytest.mark.parametrize(
    "change",
    [
        compressed,
        lambda image: np.clip(image * 1.1 + 10, 0, 255).astype(np.uint8),
        lambda image: image[4:-3, 5:-2],
        lambda image: np.roll(image, (3, 4), (0, 1)),
        lambda image: cv2.resize(image, None, fx=1.7, fy=1.7),
        bordered,
    ],
    ids=["compressed", "brightened", "cropped", "shifted", "enlarged", "bordered"],
)
def test_a_changed_copy_is_found_and_nothing_else(change) -> None:
    images = drawn(30)
    assert linked(images) == set()
    assert linked([*images, change(images[7])]) == {(7, 30)}


def test_the_drawn_data_set_has_no_near_duplicates() -> None:
    images = [draw(seed, 100, 120)[0] for seed in range(40)]
    assert len(linked(images)) <= 2


def test_even_and_tiny_images_are_like_no_other() -> None:
    blank = np.zeros((50, 60, 3), np.uint8)
    assert linked([blank, blank, np.full_like(blank, 90), np.zeros((1, 1, 3), np.uint8)]) == set()
    assert linked([blank]) == set()


def test_the_reason_is_said() -> None:
    images = drawn(3)
    arrays = [
        np.stack([function(image) for image in [*images, images[0]]])
        for function in (thumbnail, field_thumbnail)
    ]
    (link,) = find_links(*arrays)
    assert (
        link.reason == "frames correlate 1.000, hashes differ by 0 of 64 bits; fields of view correlate 1.000"
    )


def test_a_hash_ignores_brightness_and_contrast() -> None:
    small = np.stack([thumbnail(image) for image in drawn(2)]).astype(np.float32)
    first, other = perceptual_hash(small)
    assert (perceptual_hash(small * 0.5 + 20)[0] == first).all()
    assert (first != other).sum() > 12
    assert abs(int(first.sum()) - 32) <= 1  # half of the frequencies are above their median


def test_links_span_blocks() -> None:
    thumbnails = np.random.default_rng(0).integers(0, 256, (2100, 32, 32), np.uint8)
    thumbnails[2099] = thumbnails[1050] = thumbnails[3]
    thumbnails[2047] = thumbnails[1023]
    links = find_links(thumbnails, thumbnails)
    pairs = [(link.first, link.second) for link in links]
    assert pairs == [(3, 1050), (3, 2099), (1023, 2047), (1050, 2099)]


def test_groups_are_numbered_in_order_and_links_of_links_count() -> None:
    links = [Link(1, 4, ""), Link(4, 2, "")]
    assert group_images(6, links).tolist() == [0, 1, 1, 2, 1, 3]
    assert group_images(2, []).tolist() == [0, 1]
