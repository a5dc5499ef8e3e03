"""Polygons in place of masks: COCO, LabelMe and YOLO."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import picture, write

from polyp.data.layouts import Listing
from polyp.data.sources import Folder
from polyp.errors import InputError

SIZE = (40, 64)
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]  # 20 x 20 pixels
TRIANGLE = [40, 10, 60, 10, 40, 30]  # half of 20 x 20
AREAS = {"square": 400, "triangle": 200}


def images(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write(root / name, picture(seed, SIZE))
    return root


def find(root: Path, masks: str, **options: Any) -> Listing:
    return Folder(str(root), masks=masks, **options).find()


def areas(listing: Listing) -> dict[str, int]:
    """The polyp's pixels of each image; all masks have the size of their image."""
    pixels = {}
    for pair in listing.pairs:
        image, mask = pair.read()
        assert image.shape[:2] == mask.shape == SIZE and set(np.unique(mask)) <= {0, 1}
        pixels[pair.stem] = int(mask.sum())
    return pixels


def coco(
    root: Path, shapes: dict[str, list[tuple[int, Any]]], categories: tuple[str, ...] = ("polyp",)
) -> str:
    """Write annotations.json with the category and the segmentation of each annotation of a file name."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(categories, 1)]
    for number, (name, annotations) in enumerate(shapes.items(), 100):
        content["images"].append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for category, outline in annotations:
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": number, "category_id": category}
                | {"segmentation": outline, "bbox": [0, 0, 9, 9], "iscrowd": 0}
            )
    (root / "annotations.json").write_text(json.dumps(content))
    return "annotations.json"


def labelme(root: Path, name: str, *shapes: tuple[str, str, list[list[float]]]) -> None:
    content = {
        "imagePath": f"{name}.jpg",
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        "shapes": [{"label": label, "shape_type": kind, "points": points} for label, kind, points in shapes],
    }
    (root / "labels").mkdir(exist_ok=True)
    (root / f"labels/{name}.json").write_text(json.dumps(content))


def yolo(root: Path, name: str, *lines: str) -> None:
    file = root / "labels" / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))


def shares(outline: list[int]) -> str:
    return " ".join(f"{value / SIZE[1 - place % 2]:.6f}" for place, value in enumerate(outline))


def refuse(root: Path, masks: str, *parts: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        find(root, masks, **options)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text


# COCO


def test_coco(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    name = coco(tmp_path, {"a.jpg": [(1, [SQUARE])], "b.jpg": [(1, [SQUARE, TRIANGLE])], "c.jpg": []})
    listing = find(tmp_path, name)
    pixels = areas(listing)
    assert abs(pixels["a"] - 400) <= 20 and abs(pixels["b"] - 600) <= 40 and pixels["c"] == 0
    assert not listing.problems and any("3 outlines in annotations.json (COCO)" in n for n in listing.notes)


def test_coco_s_run_lengths(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    counts = [SIZE[0] * 10, SIZE[0] * 5, SIZE[0] * (SIZE[1] - 15)]  # columns 10 to 14
    name = coco(tmp_path, {"a.jpg": [(1, {"size": list(SIZE), "counts": counts})]})
    (pair,) = find(tmp_path, name).pairs
    mask = pair.read()[1]
    assert mask[:, 10:15].all() and mask.sum() == SIZE[0] * 5


def test_images_in_folders(tmp_path: Path) -> None:
    images(tmp_path, "images/case1/1.jpg", "images/case2/1.jpg")
    name = coco(tmp_path, {"case1/1.jpg": [(1, [SQUARE])], "images/case2/1.jpg": [(1, [TRIANGLE])]})
    pixels = areas(find(tmp_path, name))
    assert pixels["case1/1"] > 1.5 * pixels["case2/1"] > 0


def test_an_image_of_another_folder_is_not_meant(tmp_path: Path) -> None:
    images(tmp_path, "train2017/1.jpg", "train2017/2.jpg")
    name = coco(tmp_path, {"train2017/1.jpg": [(1, [SQUARE])], "val2017/1.jpg": [(1, [TRIANGLE])]})
    listing = find(tmp_path, name, missing_mask="empty")
    assert abs(areas(listing)["1"] - 400) <= 20
    assert listing.problems == ["annotations.json: there is no image val2017/1.jpg"]


def test_annotations_of_other_images(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    refuse(tmp_path, coco(tmp_path, {"b.jpg": []}), "none of the images", missing_mask="empty")


def test_a_folder_that_is_left_out_has_no_images(tmp_path: Path) -> None:
    root = images(tmp_path, "images/a.png", "normal/n.png")
    masks = coco(root, {"a.png": [(1, [SQUARE])]})
    listing = Folder(str(root), masks=masks).find(exclude=root / "normal")
    assert [pair.stem for pair in listing.pairs] == ["a"] and not listing.problems


def test_several_labels_need_an_answer(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    name = coco(tmp_path, {"a.jpg": [(1, [SQUARE]), (2, [TRIANGLE])]}, ("polyp", "tool"))
    refuse(tmp_path, name, "polyp (1)", "tool (1)", "'data.polyp_labels=[polyp,tool]'")
    assert areas(find(tmp_path, name, polyp_labels=["tool"]))["a"] < 250
    assert areas(find(tmp_path, name, polyp_labels=["polyp", "tool"]))["a"] > 550
    refuse(tmp_path, name, "data.polyp_labels=polip does not occur", "polyp (1)", polyp_labels=["polip"])


def test_images_and_annotations_alone(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    name = coco(tmp_path, {"a.jpg": [(1, [SQUARE])], "gone.jpg": [(1, [SQUARE])]})
    listing = find(tmp_path, name)
    assert [pair.stem for pair in listing.pairs] == ["a"]
    assert sorted(listing.problems) == [
        "annotations.json: there is no image gone.jpg",
        "b.jpg: not in annotations.json (data.missing_mask=empty if it has no polyp)",
    ]
    listing = find(tmp_path, name, missing_mask="empty")
    assert areas(listing)["b"] == 0 and len(listing.problems) == 1


def test_masks_beside_polygons_are_no_images(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg", "masks/a.png")
    assert [*areas(find(tmp_path, coco(tmp_path, {"a.jpg": [(1, [SQUARE])]})))] == ["a"]


@pytest.mark.parametrize(
    ("outline", "part"),
    [
        ([], "box only"),
        ([[1, 2, 3, 4]], "three corners"),
        ([[1, 2, 3, 4, 5]], "fewer than three corners"),
        ([["x", 2, 3, 4, 5, 6]], "damaged"),
        ([[1, 2, float("nan"), 4, 5, 6]], "damaged"),
        ({"size": list(SIZE), "counts": [1, 2, 3]}, "damaged"),
        ({"counts": 3}, "damaged"),
    ],
)
def test_damaged_outlines_are_named(tmp_path: Path, outline: Any, part: str) -> None:
    images(tmp_path, "a.jpg")
    refuse(tmp_path, coco(tmp_path, {"a.jpg": [(1, outline)]}), "annotations.json", part)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"images": 3, "annotations": []}', '{"images": [{}]}']
)
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "damaged.json").write_text(text)
    refuse(tmp_path, "damaged.json", "damaged.json")
    refuse(tmp_path, "gone.json", "data.masks=gone.json", "there is no file")


# LabelMe


def test_labelme(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    labelme(tmp_path, "a", ("polyp", "polygon", [[10, 5], [30, 5], [30, 25], [10, 25]]))
    labelme(
        tmp_path, "b", ("polyp", "rectangle", [[10, 5], [30, 25]]), ("polyp", "circle", [[45, 20], [50, 20]])
    )
    labelme(tmp_path, "c")
    listing = find(tmp_path, "labels")
    pixels = areas(listing)
    assert abs(pixels["a"] - 400) <= 20 and abs(pixels["b"] - 400 - np.pi * 25) <= 40 and pixels["c"] == 0
    assert not listing.problems and any("LabelMe" in note for note in listing.notes)


def test_labelme_s_lines_have_no_area(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg")
    labelme(tmp_path, "a", ("polyp", "line", [[1, 1], [5, 5]]))
    refuse(tmp_path, "labels", "a.json", "line")


@pytest.mark.parametrize("masks", [".", "photos"])
def test_labelme_beside_its_images(tmp_path: Path, masks: str) -> None:
    images(tmp_path, "photos/a.jpg", "photos/b.jpg")
    labelme(tmp_path, "a", ("polyp", "polygon", [[10, 5], [30, 5], [30, 25], [10, 25]]))
    (tmp_path / "labels/a.json").rename(tmp_path / "photos/a.json")
    listing = find(tmp_path, masks, missing_mask="empty")
    pixels = areas(listing)
    assert abs(pixels["a"] - 400) <= 20 and pixels["b"] == 0 and not listing.problems


def test_text_beside_masks_does_not_make_them_polygons(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "masks/README.txt").write_text("Drawn by two experts.")
    assert [pair.mask for pair in find(tmp_path, "masks").pairs] == [tmp_path / "masks/a.png"]


# YOLO


def test_yolo(tmp_path: Path) -> None:
    images(tmp_path, "images/train/a.jpg", "images/train/b.jpg", "images/val/c.jpg")
    yolo(tmp_path, "train/a", f"0 {shares(SQUARE)}", "")
    yolo(tmp_path, "train/b")
    yolo(tmp_path, "val/c", f"0 {shares(SQUARE)}", f"0 {shares(TRIANGLE)}")
    listing = find(tmp_path, "labels")
    pixels = areas(listing)
    assert abs(pixels["train/a"] - 400) <= 20 and abs(pixels["val/c"] - 600) <= 40 and pixels["train/b"] == 0
    assert {pair.subset for pair in listing.pairs} == {"train", "val"}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("0 0.5 0.5 0.2 0.2", "is a box"),
        ("0 0.1 0.1 0.2", "three or more corners"),
        ("0 10 5 30 5 30 25", "from 0 to 1"),
        ("0 a b c d e f", "cannot be read as YOLO's segmentation"),
    ],
)
def test_yolo_s_lines_are_checked(tmp_path: Path, line: str, part: str) -> None:
    images(tmp_path, "images/a.jpg")
    yolo(tmp_path, "a", line)
    refuse(tmp_path, "labels", "a.txt", part)


def test_yolo_s_classes_are_labels(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg")
    yolo(tmp_path, "a", f"0 {shares(SQUARE)}", f"1 {shares(TRIANGLE)}")
    refuse(tmp_path, "labels", "data.polyp_labels=")
    assert areas(find(tmp_path, "labels", polyp_labels=[1]))["a"] < 250


def test_text_of_classes_beside_labels_is_passed_over(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg")
    yolo(tmp_path, "a", f"0 {shares(SQUARE)}")
    yolo(tmp_path, "classes", "polyp")
    assert abs(areas(find(tmp_path, "labels"))["a"] - 400) <= 20


# The drawn masks


def test_masks_are_drawn_once_and_again_when_an_outline_changes(tmp_path: Path) -> None:
    root = images(tmp_path / "data", "images/a.jpg", "images/b.jpg")
    name = coco(root, {"a.jpg": [(1, [SQUARE])], "b.jpg": [(1, [SQUARE])]})
    files = sorted(root.rglob("*"))
    (first, _) = find(root, name).pairs
    assert first.mask is not None
    written = first.mask.stat().st_mtime_ns
    (again, _) = find(root, name).pairs
    assert again.mask == first.mask and first.mask.stat().st_mtime_ns == written
    coco(root, {"a.jpg": [(1, [TRIANGLE])], "b.jpg": [(1, [SQUARE])]})
    (changed, _) = find(root, name).pairs
    assert changed.mask != first.mask and 0 < changed.read()[1].sum() < 250
    assert not first.mask.exists()  # what is out of date is gone
    assert sorted(root.rglob("*")) == files  # nothing is written beside the user's data


def test_other_labels_leave_the_masks_of_a_run_alone(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    name = coco(tmp_path, {"a.jpg": [(1, [SQUARE]), (2, [TRIANGLE])]}, ("polyp", "tool"))
    first, second = (find(tmp_path, name, polyp_labels=[label]).pairs[0] for label in ("polyp", "tool"))
    assert first.read()[1].sum() > 1.5 * second.read()[1].sum()
