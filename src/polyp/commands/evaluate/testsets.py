"""What a model is scored on: the test images of its run, or any folder of images with or without masks."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyp.data.cache import cache_folder, load_inspection
from polyp.data.datamodule import PolypDataModule
from polyp.data.duplicates import field_thumbnail, thumbnail
from polyp.data.pairs import Pair, find_pairs, map_pairs
from polyp.data.sources import Folder
from polyp.errors import InputError, several
from polyp.images import SUFFIXES, read_image


@dataclass(frozen=True)
class TestSet:
    """Images to score on.

    Attributes:
        name: of the evaluation's folder, unless another is given.
        pairs: images and masks; normal frames have no masks, and their images stand twice.
        normal: no image has a polyp.
        fingerprint: of the data set that the images are from; None for normal frames.
        thumbnails, fields: (N, 32, 32) uint8 of images from elsewhere than a run's data, see
            `polyp.data.duplicates`.
    """

    name: str
    pairs: Sequence[Pair]
    normal: bool = False
    fingerprint: str | None = None
    thumbnails: np.ndarray | None = None
    fields: np.ndarray | None = None

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """An image (H, W, 3) uint8 RGB and its mask (H, W) uint8 in {0, 1}."""
        return pair.read()


def subset_of(data: PolypDataModule, subset: str) -> TestSet:
    """The train, val or test images of a run."""
    return TestSet(subset, data.get_pairs(subset), fingerprint=data.inspection.fingerprint)


def find_test_sets(
    folder: str, images: str = "images", masks: str = "masks", normal: bool = False
) -> list[TestSet]:
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
        return [_normal_frames(root, root / images if (root / images).is_dir() else root)]
    halves = [path for path in sorted(root.iterdir()) if (path / images).is_dir() or (path / masks).is_dir()]
    folders = halves if halves and not (root / images).is_dir() else [root]
    for path in folders:
        if not ((path / images).is_dir() and (path / masks).is_dir()):
            inside = ", ".join(sorted(f"'{sub.name}'" for sub in path.iterdir() if sub.is_dir())) or "none"
            raise InputError(
                f"--data {path} needs the folders '{images}' and '{masks}', its folders are {inside}: say "
                "which with --images and --masks, or with --normal that no image shows a polyp"
            )
    return [_with_masks(path, images, masks) for path in folders]


def _with_masks(root: Path, images: str, masks: str) -> TestSet:
    pairs, problems = find_pairs(Folder(str(root), images, masks).prepare(), images, masks)
    inspection = load_inspection(pairs, problems, cache_folder(True), allow_empty=True)
    return TestSet(
        _name(root), pairs, False, inspection.fingerprint, inspection.thumbnails, inspection.fields
    )


def _normal_frames(root: Path, folder: Path) -> TestSet:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."]
    pairs = [Pair(path.stem, path, None) for path in files if path.suffix.lower() in SUFFIXES]
    if not pairs:
        raise InputError(f"--data {root} holds no images ({', '.join(sorted(SUFFIXES))})")

    def inspect(number: int, pair: Pair) -> tuple[np.ndarray, np.ndarray] | str:
        """Thumbnails of the frame and of its field of view, or what is wrong with the image."""
        try:
            image = read_image(pair.image)
        except InputError as error:
            return str(error)
        return thumbnail(image), field_thumbnail(image)

    results = map_pairs(inspect, pairs, "checking images")
    stems = Counter(pair.stem for pair in pairs)
    problems = [text for text in results if isinstance(text, str)]
    problems += [f"{stem}: several images have this stem" for stem in stems if stems[stem] > 1]
    if problems:
        raise several(f"--data {root}: {len(problems)} problem{'s' * (len(problems) > 1)}", problems)
    return TestSet(_name(root), pairs, True, None, *map(np.stack, zip(*results, strict=True)))


def _name(root: Path) -> str:
    return Path(os.path.abspath(root)).name
