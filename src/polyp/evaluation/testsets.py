"""What a model is scored on: the test images of its run, or any folder of images with or without masks."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyp.data.cache import cache_folder, load_inspection
from polyp.data.datamodule import PolypDataModule
from polyp.data.duplicates import field_thumbnail, thumbnail
from polyp.data.pairs import EXTENSIONS, Pair, find_pairs, read_image, read_mask
from polyp.data.sources import Folder
from polyp.errors import InputError


@dataclass(frozen=True)
class TestSet:
    """Images to score on.

    Attributes:
        name: of the evaluation's folder, unless another is given.
        pairs: images and masks; of normal frames, which have no masks, the image stands twice.
        normal: no image has a polyp.
        fingerprint: of the data set that the images are from; None for normal frames.
        thumbnails, fields: (N, 32, 32) uint8 of images from elsewhere than a run's data, see `polyp.data.duplicates`.
    """

    name: str
    pairs: list[Pair]
    normal: bool = False
    fingerprint: str | None = None
    thumbnails: np.ndarray | None = None
    fields: np.ndarray | None = None

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """An image (H, W, 3) uint8 RGB and its mask (H, W) uint8 in {0, 1}."""
        image = read_image(pair.image)
        return image, np.zeros(image.shape[:2], np.uint8) if self.normal else read_mask(pair.mask)


def subset_of(data: PolypDataModule, subset: str) -> TestSet:
    """The train, val or test images of a run."""
    return TestSet(subset, data.get_pairs(subset), fingerprint=data.inspection.fingerprint)


def in_folder(folder: str, images: str = "images", masks: str = "masks", normal: bool = False) -> list[TestSet]:
    """The images of a folder: one set, or several if its subfolders are sets, as in PraNet's TestDataset.

    Args:
        folder: holds images/ and masks/, or folders that do; for normal frames, images.
        images, masks: the names of the two.
        normal: the images show no polyp, and there are no masks.

    Raises:
        InputError: the folder is not there, has no masks, or anything is wrong with a file.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"--data {folder} is not a folder")
    if normal:
        return [_normal(root, images)]
    inside = [path for path in sorted(root.iterdir()) if (path / images).is_dir() and (path / masks).is_dir()]
    if (root / images).is_dir() and not (root / masks).is_dir():
        raise InputError(
            f"--data {folder} has no folder '{masks}': name it with --masks NAME, or say that no image shows a polyp "
            "with --normal"
        )
    if not inside and not (root / images).is_dir():
        if any(_is_image(path) for path in root.iterdir()):
            raise InputError(
                f"--data {folder} holds images but no folder '{masks}': give the folder that holds {images}/ and "
                f"{masks}/, or say that no image shows a polyp with --normal"
            )
        there = ", ".join(sorted(f"'{path.name}'" for path in root.iterdir() if path.is_dir())) or "none"
        raise InputError(
            f"--data {folder} has no folders '{images}' and '{masks}', nor folders that do; its folders are {there}: "
            "say which with --images and --masks"
        )
    if lacking := [] if (root / images).is_dir() else [p for p in sorted(root.iterdir()) if _half(p, images, masks)]:
        there = masks if (lacking[0] / images).is_dir() else images
        raise InputError(f"{lacking[0]} has no folder '{there}', which others in {folder} have: name it so, or move it")
    return [_with_masks(path, images, masks) for path in ([root] if (root / images).is_dir() else inside)]


def _half(folder: Path, images: str, masks: str) -> bool:
    """Whether a folder has images or masks, but not both."""
    return (folder / images).is_dir() != (folder / masks).is_dir()


def _with_masks(root: Path, images: str, masks: str) -> TestSet:
    root = Folder(str(root), images, masks).prepare()
    pairs, problems = find_pairs(root, images, masks)
    inspection = load_inspection(pairs, problems, cache_folder(True), allow_empty=True)
    name = Path(os.path.abspath(root)).name
    return TestSet(name, pairs, False, inspection.fingerprint, inspection.thumbnails, inspection.fields)


def _normal(root: Path, images: str) -> TestSet:
    folder = root / images if (root / images).is_dir() else root
    pairs = [Pair(path.stem, path, path) for path in sorted(folder.iterdir()) if _is_image(path)]
    if not pairs:
        raise InputError(f"--data {root} holds no images ({', '.join(sorted(EXTENSIONS))})")
    with ThreadPoolExecutor() as pool:  # before long work, and all that is wrong at once
        looks = list(pool.map(_look, pairs))
    problems = [look for look in looks if isinstance(look, str)]
    twice = [stem for stem, count in Counter(pair.stem for pair in pairs).items() if count > 1]
    problems += [f"{stem}: several images have this stem" for stem in twice]
    if problems:
        raise InputError("\n  ".join([f"--data {root}: {len(problems)} problem{'s' * (len(problems) > 1)}", *problems]))
    thumbnails, fields = (np.stack(of) for of in zip(*looks, strict=True))
    return TestSet(Path(os.path.abspath(root)).name, pairs, True, None, thumbnails, fields)


def _look(pair: Pair) -> tuple[np.ndarray, np.ndarray] | str:
    """Thumbnails of the frame and of its field of view, or what is wrong with the image."""
    try:
        image = read_image(pair.image)
    except InputError as error:
        return str(error)
    return thumbnail(image), field_thumbnail(image)


def _is_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() in EXTENSIONS
