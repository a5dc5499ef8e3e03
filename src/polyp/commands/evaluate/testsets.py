"""The images that a model is scored on: those of its run, or any folder of images with or without masks."""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyp.data.cache import cache_folder, load_inspection
from polyp.data.datamodule import NORMAL, PolypDataModule
from polyp.data.layouts import list_images
from polyp.data.pairs import Pair, find_suspicions
from polyp.data.sources import Folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestSet:
    """Images to score on."""

    name: str  # the default name of the evaluation's folder
    pairs: Sequence[Pair]  # normal frames have no masks
    normal: bool = False  # no image has a polyp
    fingerprint: str | None = None  # of the data set; None for normal frames
    thumbnails: np.ndarray | None = None  # (N, 32, 32) uint8, see `polyp.data.duplicates`; None for a run's
    fields: np.ndarray | None = None  # like thumbnails
    models: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The numbers of the models that score an image, by its stem; empty if all models score all images."""

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """An image (H, W, 3) uint8 RGB and its mask (H, W) uint8: 1 polyp, 0 background, 255 ignored."""
        return pair.read()


def subset_of(data: PolypDataModule, subset: str) -> TestSet:
    """The train, val or test images of a run, or the normal frames of its test (`normal`)."""
    return TestSet(subset, data.get_pairs(subset), subset == NORMAL, data.inspection.fingerprint)


def find_test_sets(
    folder: str, images: str | None = None, masks: str | None = None, normal: bool = False, **options: Any
) -> list[TestSet]:
    """The images of a folder: one set, or several if it has several sources, as PraNet's TestDataset.

    Args:
        folder: images and masks in any layout of `polyp.data.layouts`; for normal frames, images alone.
        images, masks, options: see `polyp.data.sources.Folder`.
        normal: the images show no polyp and have no masks.

    Raises:
        InputError: the folder has no masks, or a file has a problem.
    """
    root = Path(os.path.abspath(Path(folder).expanduser()))  # its name becomes that of the evaluation
    if normal:
        listing = list_images(root / images if images else root)
    else:
        listing = Folder(str(root), images, masks, **options).find()
    for note in listing.notes:
        log.info("%s", note)
    pairs_of = defaultdict(list)
    for pair in listing.pairs:
        pairs_of["" if normal else pair.source].append(pair)
    names = [source.rpartition("/")[2] or root.name for source in pairs_of]
    if len(set(names)) < len(names):
        names = [source.replace("/", "_") or root.name for source in pairs_of]
    test_sets = []
    for name, pairs in zip(names, pairs_of.values(), strict=True):
        inspection = load_inspection(pairs, listing.problems, cache_folder(True), allow_empty=True)
        for note in inspection.notes.splitlines():
            log.info("%s", note)
        for suspicion in [] if normal else find_suspicions(inspection):
            log.warning("%s: %s", name, suspicion)
        fingerprint = None if normal else inspection.fingerprint
        test_sets.append(TestSet(name, pairs, normal, fingerprint, inspection.thumbnails, inspection.fields))
    return test_sets
