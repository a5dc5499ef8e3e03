"""Layouts: which images and masks belong together, wherever people put them and however they name them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import lay_out, numbered, picture, polyp, write

from polyp.commands.evaluate.testsets import find_test_sets
from polyp.data.layouts import Listing, list_images, list_pairs
from polyp.errors import InputError

Names = list[tuple[str, str | None]]


def match(root: Path, names: Names, **options: Any) -> tuple[Listing, dict[str, Any]]:
    """The listing of a folder in which each image belongs to the mask written with it, and pairs by stem."""
    listing = list_pairs(lay_out(root, *names), **options)
    assert not listing.problems
    pairs = {(pair.image, pair.mask) for pair in listing.pairs}
    assert pairs == {(root / image, root / mask if mask else None) for image, mask in names}
    assert [pair.stem for pair in listing.pairs] == sorted({pair.stem for pair in listing.pairs})
    return listing, {pair.stem: pair for pair in listing.pairs}


def refuse(root: Path, names: Names, *parts: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list_pairs(lay_out(root, *names), **options)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text
    return text


# Names


@pytest.mark.parametrize(
    ("image", "mask", "stem", "note"),
    [
        ("images/{}.jpg", "masks/{}.png", "{}", None),
        ("images/{}.jpg", "masks/{}_mask.png", "{}", "masks are named {stem}_mask"),
        ("image_00{}.jpg", "image_00{}_mask.jpg", "image_00{}", "masks are named {stem}_mask"),
        ("ISIC_{}.jpg", "ISIC_{}_segmentation.png", "ISIC_{}", "masks are named {stem}_segmentation"),
        ("images/{}.jpg", "images/{}_mask.jpg", "{}", "masks are named {stem}_mask"),
        ("images/{}_0000.png", "labels/{}.png", "{}", "images are named {stem}_0000"),
        ("images/{}.tif", "masks/p{}.tif", "{}", "masks are named p{stem}"),
        ("ETIS-LaribPolypDB/{}.tif", "Ground Truth/p{}.tif", "{}", "images are in ETIS-LaribPolypDB/"),
        ("images/a{}b.jpg", "masks/m_a{}b_gt.png", "a{}b", "masks are named m_{stem}_gt"),
        ("images/img_{}.jpg", "masks/mask_{}.png", "{}", "images are named img_{stem}"),
        ("image{}.jpg", "mask{}.jpg", "{}", "masks are named mask{stem}"),
        ("Polyp ä {}.JPG", "Polyp ä {}_GT.PNG", "Polyp ä {}", "masks are named {stem}_GT"),
        ("{}.jpg", "masks/{}.png", "{}", "images are in the folder itself"),
    ],
)
def test_names_are_understood(tmp_path: Path, image: str, mask: str, stem: str, note: str | None) -> None:
    numbers = [*range(1, 12)]
    listing, pairs = match(tmp_path, [*numbered(image, mask, numbers)])
    assert sorted(pairs) == sorted(stem.format(number) for number in numbers)
    assert note in listing.notes if note else not listing.notes


def test_names_of_the_user_are_taken(tmp_path: Path) -> None:
    names = numbered("images/{}_0000.jpg", "masks/{}_b.png", ["x", "y"])
    lay_out(tmp_path, *numbered("images/{}_0001.jpg", "masks/{}_a.png", ["x", "y"]))
    refuse(tmp_path, names, "no image and mask of the same name", "data.mask_name=")
    options = {"image_name": "{stem}_0000", "mask_name": "{stem}_b.png"}
    listing = list_pairs(tmp_path, **options)
    assert [(pair.stem, pair.mask) for pair in listing.pairs] == [
        ("x", tmp_path / "masks/x_b.png"),
        ("y", tmp_path / "masks/y_b.png"),
    ]
    assert not listing.problems and any("2 masks are left out" in note for note in listing.notes)


@pytest.mark.parametrize("name", ["mask", "{stem}_{stem}"])
def test_a_pattern_has_the_stem_once(tmp_path: Path, name: str) -> None:
    refuse(tmp_path, [("images/1.jpg", "masks/1.png")], f"data.mask_name={name}", mask_name=name)


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "png", "TIF", "tiff", "bmp", "webp", "gif"])
def test_endings_are_read_in_any_case(tmp_path: Path, ending: str) -> None:
    _, pairs = match(tmp_path, [(f"images/a.b.{ending}", "masks/a.b.PNG")])
    image, mask = pairs["a.b"].read()
    assert image.shape == (40, 48, 3) and mask.sum() > 20


def test_equal_names_in_one_folder_need_an_answer(tmp_path: Path) -> None:
    names = numbered("{}.jpg", "{}.png")
    refuse(tmp_path, [*names], "1.jpg and 1.png", "data.images='*.jpg' data.masks='*.png'")
    match(tmp_path, [*names], images="*.JPG", masks="*.png")


def test_other_pictures_among_masks_need_an_answer(tmp_path: Path) -> None:
    names = numbered("images/{}.jpg", "masks/{}.png", ["a1", "a2"])
    for number in (1, 2):
        write(tmp_path / f"masks/a{number}_overlay.png", picture(number))
    refuse(tmp_path, [*names], "equal names", "{stem}_overlay", "data.masks='masks/*_mask.png'")
    listing = list_pairs(tmp_path, masks="masks/a?.png")
    assert [pair.stem for pair in listing.pairs] == ["a1", "a2"] and not listing.problems
    assert "2 other images are left out, in masks/" in listing.notes


def test_two_masks_of_an_image_need_an_answer(tmp_path: Path) -> None:
    names = numbered("images/{}.jpg", "masks/{}_1.png", ["a", "b", "c"])
    write(tmp_path / "masks/b_2.png", polyp(9) * 255)
    listing = list_pairs(lay_out(tmp_path, *names))
    (problem,) = listing.problems
    assert "masks/b_2.png" in problem and "{stem}_1" in problem
    for stem in "ac":
        write(tmp_path / f"masks/{stem}_2.png", polyp(9) * 255)
    refuse(tmp_path, [*names], "{stem}_1", "{stem}_2", "data.mask_name=")


@pytest.mark.parametrize("missing_mask", ["error", "empty"])
def test_a_mask_without_the_suffix_of_the_others_is_a_problem(tmp_path: Path, missing_mask: str) -> None:
    lay_out(tmp_path, *numbered("images/{}.jpg", "masks/{}_mask.png"), ("images/4.jpg", "masks/4.png"))
    problems = list_pairs(tmp_path, missing_mask=missing_mask).problems
    assert any(problem.startswith("masks/4.png: is not named {stem}_mask") for problem in problems)


def test_a_number_is_no_suffix_of_another(tmp_path: Path) -> None:
    names = [("images/1.jpg", "masks/11.png"), ("images/2.jpg", "masks/12.png")]
    refuse(tmp_path, names, "no image and mask of the same name", "data.mask_name=")


def test_an_image_or_a_mask_alone_is_a_problem(tmp_path: Path) -> None:
    lay_out(tmp_path, *numbered("images/{}.jpg", "masks/{}.png"))
    (tmp_path / "images/1.jpg").unlink()
    (tmp_path / "masks/2.png").unlink()
    listing = list_pairs(tmp_path)
    assert sorted(listing.problems) == ["images/2.jpg: no mask in masks/", "masks/1.png: no image in images/"]
    listing = list_pairs(tmp_path, missing_mask="empty")
    assert [pair.mask is None for pair in listing.pairs] == [True, False]
    assert listing.problems == ["masks/1.png: no image in images/"]


def test_a_folder_of_images_without_masks_is_one_problem(tmp_path: Path) -> None:
    lay_out(tmp_path, *numbered("images/{}.jpg", "masks/{}.png"))
    lay_out(tmp_path, *((f"bbox_images/{number}.jpg", None) for number in range(1, 7)))
    listing = list_pairs(tmp_path)
    assert len(listing.pairs) == 3 and {pair.source for pair in listing.pairs} == {""}
    (problem,) = listing.problems
    assert problem.startswith("bbox_images/: none of its 6 images has a mask (data.images=")
    listing = list_pairs(tmp_path, images="images")
    assert not listing.problems and "6 other images are left out, in bbox_images/" in listing.notes


def test_images_without_any_mask_can_be_meant(tmp_path: Path) -> None:
    names: Names = [(f"images/{number}.jpg", None) for number in (1, 2)]
    refuse(tmp_path, names, "known to hold masks", "images/", "data.masks=")
    match(tmp_path, names, missing_mask="empty")


# Folders


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("Original", "Ground Truth"),
        ("img", "gt"),
        ("JPEGImages", "SegmentationClass"),
        ("input", "target"),
        ("images/images", "masks/masks"),
        ("images/images", "images/masks"),
        ("photos", "masks"),
        ("CVC/Original", "CVC/Ground Truth"),
        ("ISIC2018_Task1-2_Input", "ISIC2018_Task1_GroundTruth"),
    ],
)
def test_folders_are_known_by_their_names(tmp_path: Path, images: str, masks: str) -> None:
    listing, pairs = match(tmp_path, [*numbered(f"{images}/{{}}.jpg", f"{masks}/{{}}.png")])
    assert [*pairs] == ["1", "2", "3"]
    assert listing.notes[:2] == [f"images are in {images}/", f"masks are in {masks}/"]
    assert {pair.source for pair in listing.pairs} == {""}


def test_folders_of_other_names_are_asked_for(tmp_path: Path) -> None:
    names = [*numbered("photos/{}.jpg", "drawings/{}.png")]
    refuse(tmp_path, names, "drawings/, photos/", "data.images=", "data.masks=")
    match(tmp_path, names, images="photos", masks="drawings")
    refuse(tmp_path, names, "no images in 'pictures' (data.images)", images="pictures", masks="drawings")


def test_other_images_are_left_out_and_said(tmp_path: Path) -> None:
    lay_out(tmp_path, *numbered("images/{}.jpg", "masks/{}.png"))
    write(tmp_path / "overlays/1.png", picture(1))
    listing = list_pairs(tmp_path)
    assert len(listing.pairs) == 3 and "1 other images are left out, in overlays/" in listing.notes


def test_what_computers_add_is_passed_over(tmp_path: Path) -> None:
    names = [*numbered("images/{}.jpg", "masks/{}.png")]
    hidden = ("images/._1.jpg", "__MACOSX/images/4.jpg", ".git/4.jpg", "masks/Thumbs.db", ".DS_Store")
    for name in hidden:
        write(tmp_path / "a.jpg", picture(0))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a.jpg").rename(tmp_path / name)
    listing, _ = match(tmp_path, names)
    assert not listing.notes


def test_broken_links_and_circles_of_links(tmp_path: Path) -> None:
    lay_out(tmp_path, *numbered("images/{}.jpg", "masks/{}.png"))
    (tmp_path / "images/again").symlink_to(tmp_path)
    (tmp_path / "images/4.jpg").symlink_to(tmp_path / "gone.jpg")
    listing = list_pairs(tmp_path)
    assert len(listing.pairs) == 3
    assert listing.problems == ["images/4.jpg: a broken link, or not a file"]


def test_sequences_have_stems_with_their_folder(tmp_path: Path) -> None:
    names = [n for case in (1, 2) for n in numbered(f"Frame/case{case}/{{}}.jpg", f"GT/case{case}/{{}}.png")]
    listing, pairs = match(tmp_path, [*names])
    assert [*pairs] == ["case1/1", "case1/2", "case1/3", "case2/1", "case2/2", "case2/3"]
    assert listing.notes[0] == "images are in Frame/case1/, Frame/case2/"


def test_centres_are_sources(tmp_path: Path) -> None:
    centre = "data_C{0}/{1}_C{0}/"
    names = [
        name
        for c in range(1, 7)
        for name in numbered(centre.format(c, "images") + "{}.jpg", centre.format(c, "masks") + "{}_mask.jpg")
    ]
    listing, pairs = match(tmp_path, [*names])
    assert len(pairs) == 18 and pairs["data_C6/3"].source == "data_C6"
    assert len({pair.source for pair in listing.pairs}) == 6


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}/{{}}.jpg", "masks/{}/{{}}.png"),
        ("{}/images/{{}}.jpg", "{}/masks/{{}}.png"),
        ("{}_images/{{}}.jpg", "{}_masks/{{}}.png"),
        ("images/{}/{{}}.jpg", "images/{}/{{}}_mask.jpg"),
    ],
)
def test_subsets_are_known_by_their_folders(tmp_path: Path, image: str, mask: str) -> None:
    subsets = {"train": "train", "Validation": "val", "test": "test"}
    names = [n for name in subsets for n in numbered(image.format(name), mask.format(name))]
    listing, pairs = match(tmp_path, [*names])
    assert {stem.split("/")[0]: pair.subset for stem, pair in pairs.items()} == subsets
    assert {pair.source for pair in listing.pairs} == {""}


def test_nnunet(tmp_path: Path) -> None:
    names = [
        name
        for part in ("Tr", "Ts")
        for name in numbered(f"images{part}/{part}_{{}}_0000.png", f"labels{part}/{part}_{{}}.png")
    ]
    listing, pairs = match(tmp_path, [*names])
    assert {pair.subset for stem, pair in pairs.items() if "Ts" in stem} == {"test"}
    assert "images are named {stem}_0000" in listing.notes


def test_pranet_s_folders_have_five_test_sets(tmp_path: Path) -> None:
    sets = ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir")
    folders = ["TrainDataset/{}", *(f"TestDataset/{name}/{{}}" for name in sets)]
    names = [
        name
        for folder in folders
        for name in numbered(folder.format("images") + "/{}.png", folder.format("masks") + "/{}.png")
    ]
    listing, pairs = match(tmp_path, [*names])
    tests = [pair for pair in listing.pairs if pair.subset == "test"]
    assert len(tests) == 15 and {pair.source for pair in tests} == set(sets)
    assert {pair.subset for pair in listing.pairs if pair not in tests} == {"train"}
    assert pairs["TestDataset/Kvasir/1"].image == tmp_path / "TestDataset/Kvasir/images/1.png"


def test_test_sets_that_differ_in_their_subset_are_sources(tmp_path: Path) -> None:
    folders = [f"Test{level}Dataset/{kind}" for level in ("Easy", "Hard") for kind in ("Seen", "Unseen")]
    names = [n for f in folders for n in numbered(f"{f}/Frame/c/{{}}.jpg", f"{f}/GT/c/{{}}.png")]
    listing, _ = match(
        tmp_path, [*names, *numbered("TrainDataset/Frame/c/{}.jpg", "TrainDataset/GT/c/{}.png")]
    )
    assert {pair.source for pair in listing.pairs if pair.subset == "test"} == set(folders)


def test_test_sets_are_evaluated_under_names_of_their_own(tmp_path: Path) -> None:
    for level in ("Easy", "Hard"):
        names = numbered(f"Test{level}Dataset/Seen/Frame/{{}}.jpg", f"Test{level}Dataset/Seen/GT/{{}}.png")
        lay_out(tmp_path / "both", *names)
        lay_out(tmp_path / f"five/TestDataset/CVC-{level}", *numbered("images/{}.jpg", "masks/{}.png"))
    sets = find_test_sets(str(tmp_path / "both"))
    assert {test_set.name for test_set in sets} == {"TestEasyDataset_Seen", "TestHardDataset_Seen"}
    assert {test_set.name for test_set in find_test_sets(str(tmp_path / "five"))} == {"CVC-Easy", "CVC-Hard"}


def test_thousands_of_files_take_seconds(tmp_path: Path) -> None:
    first = lay_out(tmp_path, ("images/0.jpg", "masks/0_mask.png"))
    for number in range(1, 4000):
        (tmp_path / f"images/{number}.jpg").hardlink_to(first / "images/0.jpg")
        if number % 2:
            (tmp_path / f"masks/{number}_mask.png").hardlink_to(first / "masks/0_mask.png")
    listing = list_pairs(tmp_path)
    assert len(listing.pairs) == 2001 and len(listing.problems) == 1999


# Frames without polyps


def test_frames_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("video1/1.jpg", "video1/2.jpg", "video2/1.PNG"):
        write(tmp_path / name, picture(1))
    assert [pair.stem for pair in list_images(tmp_path).pairs] == ["video1/1", "video1/2", "video2/1"]
    assert all(pair.mask is None for pair in list_images(tmp_path).pairs)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="has no images"):
        list_images(tmp_path / "none")


def test_masks_beside_frames_are_no_frames(tmp_path: Path) -> None:
    lay_out(tmp_path, *numbered("images/{}.jpg", "masks/{}.png"))
    listing = list_images(tmp_path)
    assert [pair.stem for pair in listing.pairs] == ["1", "2", "3"]
    assert listing.notes == ["3 masks are left out, in masks/"]


# What a picture is


def test_a_turned_mask_says_orientation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from polyp.data.pairs import inspect

    lay_out(tmp_path, ("images/1.jpg", "masks/1.png"))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    write(tmp_path / "images/1.jpg", picture(1), exif=exif)
    listing = list_pairs(tmp_path)
    assert listing.pairs[0].read()[0].shape == (48, 40, 3)
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match=r"1\.jpg: is 40x48.*orientation"):
        inspect(listing.pairs, listing.problems)


def test_16_bits_and_cmyk_are_read(tmp_path: Path) -> None:
    from PIL import Image

    lay_out(tmp_path, ("images/1.png", "masks/1.png"), ("images/2.jpg", "masks/2.png"))
    write(tmp_path / "images/1.png", picture(1)[..., 0].astype(np.uint16) * 257)
    Image.fromarray(picture(2)).convert("CMYK").save(tmp_path / "images/2.jpg")
    for pair in list_pairs(tmp_path).pairs:
        image, mask = pair.read()
        assert image.shape == (*mask.shape, 3) and image.dtype == np.uint8 and image.std() > 10
