"""Finding, reading and checking the pairs of a data set."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from polyp.data.layouts import list_pairs
from polyp.data.masks import read_mask
from polyp.data.pairs import Inspection, inspect
from polyp.data.sources import DATASETS, Folder, Source
from polyp.errors import InputError
from polyp.images import read_image
from polyp.runs.data import build_data


def write(path: Path, pixels: np.ndarray) -> Path:
    """Write an image through Python: OpenCV cannot open every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    return path


def picture(height: int = 40, width: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def disc(height: int = 40, width: int = 50, white: int = 255) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[5:15, 10:30] = white
    return mask


def make(
    root: Path, count: int = 3, images: str = "images", masks: str = "masks", suffix: str = ".png"
) -> Path:
    for n in range(count):
        write(root / images / f"frame{n}{suffix}", picture(seed=n))
        write(root / masks / f"frame{n}{suffix}", disc())
    return root


def inspect_folder(root: Path, **options: bool) -> Inspection:
    listing = list_pairs(root)
    return inspect(listing.pairs, listing.problems, **options)


def check_line(caught: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in parts), text


# Folder


def test_folder_is_prepared_and_left_alone(tmp_path: Path) -> None:
    make(tmp_path)
    files = sorted(tmp_path.rglob("*"))
    assert Folder(root=str(tmp_path)).prepare() == tmp_path
    assert sorted(tmp_path.rglob("*")) == files


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(make(tmp_path)))
    assert Folder(root="~").prepare() == tmp_path


@pytest.mark.parametrize("root", [None, ""])
def test_root_is_needed(root: str | None) -> None:
    with pytest.raises(InputError) as caught:
        Folder(root=root).prepare()
    check_line(caught, "data.root=FOLDER is needed")


def test_root_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Folder(root=str(tmp_path / "nowhere")).prepare()
    check_line(caught, "data.root=", "nowhere", "is not a folder")


def test_masks_are_missing(tmp_path: Path) -> None:
    write(tmp_path / "images/a.png", picture())
    with pytest.raises(InputError) as caught:
        Folder(root=str(tmp_path)).find()
    check_line(caught, "no folder that is known to hold masks", "images/", "data.masks=")


def test_images_cannot_be_their_own_masks(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Folder(root=str(make(tmp_path)), masks="images").find()
    check_line(caught, "known to hold images", "data.images=")


# Source


@dataclass(frozen=True)
class Colon(Source):
    """A data set that polyp does not know."""

    frames: int = 20
    licence = "Ask the colon."

    def prepare(self) -> Path:
        return make(Path(str(self.root)), self.frames)


def test_new_data_set_is_one_class_and_its_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "colon", Colon)
    settings = {"dataset": "colon", "split": "random", "split_seed": 0, "image_size": 32, "batch_size": 4}
    settings |= {"num_workers": 0, "cache": False, "allow_empty": False, "root": str(tmp_path), "frames": 20}
    data = build_data(settings, {"transforms": []}, 0)
    data.setup("fit")
    assert data.describe()["images"] == {"train": 16, "val": 2, "test": 2}
    with pytest.raises(InputError, match=r"data\.frame is unknown: did you mean frames"):
        build_data(settings | {"frame": 3}, {"transforms": []}, 0)


# list_pairs


def test_pairs_are_sorted_and_other_files_passed_over(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.jpeg", "d.TIFF", "c.bmp", "e.x.png"):
        write(tmp_path / "images" / name, picture())
        write(tmp_path / "masks" / f"{Path(name).stem}.png", disc())
    for name in ("Thumbs.db", ".DS_Store", "._a.jpg", "boxes.json"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    listing = list_pairs(tmp_path)
    assert [pair.stem for pair in listing.pairs] == ["a", "b", "c", "d", "e.x"]
    assert listing.pairs[1].image.name == "b.JPG"
    assert listing.pairs[1].mask == tmp_path / "masks" / "b.png"
    assert not listing.problems and not listing.notes


def test_no_pair_at_all(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png", picture())
    write(tmp_path / "masks" / "b.png", disc())
    with pytest.raises(InputError) as caught:
        list_pairs(tmp_path)
    check_line(caught, "no image and mask of the same name", "a.png", "b.png", "data.mask_name='{stem}_mask'")
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError) as caught:
        list_pairs(tmp_path)
    check_line(caught, "has no images")


# read_image, read_mask


def test_colours_are_rgb_and_names_are_free(tmp_path: Path) -> None:
    path = write(tmp_path / "polyp ÿ 大.png", np.full((4, 6, 3), (10, 20, 200), np.uint8))
    image = read_image(path)
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    assert image[0, 0].tolist() == [200, 20, 10]


def test_mask_is_polyp_above_127(tmp_path: Path) -> None:
    grey = np.array([[0, 1, 127, 128, 254, 255]], np.uint8)
    mask = read_mask(write(tmp_path / "m.png", grey))
    assert mask.tolist() == [[0, 0, 0, 1, 1, 1]] and mask.dtype == np.uint8
    assert read_mask(write(tmp_path / "c.png", np.dstack([grey] * 3))).tolist() == mask.tolist()
    assert not read_mask(write(tmp_path / "e.png", grey * 0)).any()


def test_orientation_tag_is_followed(tmp_path: Path) -> None:
    data = cv2.imencode(".jpg", picture(16, 32))[1].tobytes()
    # orientation 6: turned by a right angle
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (tmp_path / "a.jpg").write_bytes(
        data[:2] + b"\xff\xe1" + (8 + len(tiff)).to_bytes(2) + b"Exif\0\0" + tiff + data[2:]
    )
    assert read_image(tmp_path / "a.jpg").shape == (32, 16, 3)
    assert read_mask(tmp_path / "a.jpg").shape == (32, 16)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5])
def test_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = write(tmp_path / f"half{suffix}", picture(200, 200))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError) as caught:
        read_image(path)
    check_line(caught, f"half{suffix}", "not a readable image")


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_mask(tmp_path / "gone.png")
    check_line(caught, "gone.png", "No such file")


# inspect


def test_inspection(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png", np.full((64, 96, 3), 200, np.uint8))
    write(tmp_path / "masks" / "a.png", disc(64, 96))
    write(tmp_path / "images" / "b.png", picture(32, 32))
    write(tmp_path / "masks" / "b.png", np.full((32, 32), 255, np.uint8))
    inspection = inspect_folder(tmp_path)
    assert inspection.sizes.tolist() == [[64, 96], [32, 32]] and inspection.sizes.dtype == np.int32
    assert (
        inspection.shares.tolist() == [np.float32(200 / (64 * 96)), 1.0]
        and inspection.shares.dtype == np.float32
    )
    assert inspection.thumbnails.shape == (2, 32, 32) and inspection.thumbnails.dtype == np.uint8
    assert (inspection.thumbnails[0] == 200).all()
    assert len(inspection.fingerprint) == 16 and int(inspection.fingerprint, 16)


def test_fingerprint_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        return inspect_folder(root).fingerprint

    first = fingerprint(make(tmp_path / "a"))
    assert fingerprint(make(tmp_path / "b")) == first
    write(tmp_path / "b/masks/frame1.png", disc()[::-1])
    assert fingerprint(tmp_path / "b") != first
    for folder in ("images", "masks"):
        (tmp_path / "a" / folder / "frame2.png").rename(tmp_path / "a" / folder / "frame9.png")
    assert fingerprint(tmp_path / "a") != first


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    make(tmp_path, 8)
    images, masks = tmp_path / "images", tmp_path / "masks"
    (masks / "frame0.png").unlink()
    (images / "frame1.png").unlink()
    write(images / "frame2.jpg", picture())
    (images / "frame3.png").write_bytes(b"no image")
    (masks / "frame3.png").write_bytes(b"")
    write(masks / "frame4.png", disc(50, 40))
    write(masks / "frame5.png", disc(white=0))
    write(masks / "frame6.png", np.zeros((40, 50, 3), np.uint8))
    (images / "broken.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError) as caught:
        inspect_folder(tmp_path)
    headline, *lines = str(caught.value).split("\n")
    assert headline == f"{tmp_path}: 9 problems with the images and masks"
    expected = {
        "images/broken.png": "a broken link",
        "images/frame0.png": "no mask in masks/",
        "images/frame2.png": "has the same stem as images/frame2.jpg",
        "images/frame3.png": "not a readable image",
        "images/frame4.png": "is 50x40, its mask is 40x50",
        "masks/frame1.png": "no image in images/",
        "masks/frame3.png": "not a readable image",
        "masks/frame5.png": "the mask is empty (data.allow_empty=true",
        "masks/frame6.png": "the mask is empty (data.allow_empty=true",
    }
    assert [line.split(":")[0].strip() for line in lines] == list(expected)
    assert all(part in line for line, part in zip(lines, expected.values(), strict=True)), lines


def test_long_list_is_cut(tmp_path: Path) -> None:
    make(tmp_path, 1)
    with pytest.raises(InputError) as caught:
        inspect(list_pairs(tmp_path).pairs, [f"problem {n:03}" for n in range(60)])
    lines = str(caught.value).split("\n")
    assert len(lines) == 52 and "60 problems" in lines[0] and lines[-1].strip() == "... and 10 more"


def test_empty_masks_can_be_allowed(tmp_path: Path) -> None:
    make(tmp_path)
    write(tmp_path / "masks/frame1.png", disc(white=0))
    assert inspect_folder(tmp_path, allow_empty=True).shares[1] == 0
    with pytest.raises(InputError, match=r"1 problem with.*\n.*masks/frame1.png: the mask is empty"):
        inspect_folder(tmp_path)
