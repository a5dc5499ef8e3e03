"""What a model is scored on: the test images of its run, or any folder of images with or without masks."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyp.data.cache import cache_folder, load_inspection
from polyp.data.datamodule import NORMAL, PolypDataModule
from polyp.data.layouts import list_images
from polyp.data.pairs import Pair, find_suspicions
from polyp.data.sources import Folder
from polyp.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestSet:
    """Images to score on.

    Attributes:
        name: of the evaluation's folder, unless another is given.
        pairs: images and masks; normal frames have no masks.
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
        """An image (H, W, 3) uint8 RGB and its mask (H, W) uint8: 1 polyp, 0 background, 255 ignored."""
        return pair.read()


def subset_of(data: PolypDataModule, subset: str) -> TestSet:
    """The train, val or test images of a run, or its test's normal frames (`normal`)."""
    return TestSet(subset, data.get_pairs(subset), subset == NORMAL, data.inspection.fingerprint)


def find_test_sets(
    folder: str, images: str | None = None, masks: str | None = None, normal: bool = False, **options: Any
) -> list[TestSet]:
    """The images of a folder: one set, or several if it has several sources, as PraNet's TestDataset.

    Args:
        folder: holds images and masks in any layout that `polyp.data.layouts` knows; for normal frames,
            images.
        images, masks, options: see `polyp.data.sources.Folder`.
        normal: the images show no polyp, and there are no masks.

    Raises:
        InputError: the folder is not there, has no masks, or anything is wrong with a file.
    """
    root = Path(os.path.abspath(Path(folder).expanduser()))  # its name is that of the evaluation
    if not root.is_dir():
        raise InputError(f"--data {folder} is not a folder")
    if normal:
        listing = list_images(root / images if images else root)
    else:
        listing = Folder(str(root), images, masks, **options).find()
    for note in listing.notes:
        log.info("%s", note)
    sets = defaultdict(list)
    for pair in listing.pairs:
        sets["" if normal else pair.source].append(pair)
    names = {source: source.rpartition("/")[2] or root.name for source in sets}
    if len(set(names.values())) < len(names):
        names = {source: source.replace("/", "_") or root.name for source in sets}
    return [_inspect_set(names[source], pairs, listing.problems, normal) for source, pairs in sets.items()]


def _inspect_set(name: str, pairs: Sequence[Pair], problems: Sequence[str], normal: bool) -> TestSet:
    inspection = load_inspection(pairs, problems, cache_folder(True), allow_empty=True)
    for note in inspection.notes.splitlines():
        log.info("%s", note)
    for suspicion in [] if normal else find_suspicions(inspection):
        log.warning("%s: %s", name, suspicion)
    fingerprint = None if normal else inspection.fingerprint
    return TestSet(name, pairs, normal, fingerprint, inspection.thumbnails, inspection.fields)
