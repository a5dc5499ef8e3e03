"""The test images of a run, which the page offers by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from polyp.commands.app.inference_queue import InputImage
from polyp.commands.evaluate.testsets import TestSet, subset_of
from polyp.data.pairs import Pair
from polyp.errors import InputError
from polyp.runs.data import load_run_data
from polyp.runs.model import Source

SIDE = 160
"""The side of a thumbnail in pixels."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images with their truths.

    Attributes:
        test_set: reads them.
        images: the images and their masks by key, in the order of the page.
        note: why there are no images, for the user.
    """

    test_set: TestSet | None = None
    images: Mapping[str, Pair] = field(default_factory=dict)
    note: str = ""

    def read(self, key: str) -> InputImage:
        """The image with a key of `images`, and its truth.

        Raises:
            InputError: it can no longer be read.
        """
        assert self.test_set is not None
        pixels, truth = self.test_set.read(self.images[key])
        return InputImage(key, pixels, truth)

    @lru_cache(maxsize=4096)  # noqa: B019 - some kilobytes each; there is one gallery
    def make_thumbnail(self, key: str) -> bytes:
        """A small square picture of an image, as JPEG; raises as `read` does."""
        pixels = self.read(key).pixels
        scale = SIDE / min(pixels.shape[:2])
        size = [max(SIDE, round(side * scale)) for side in pixels.shape[1::-1]]
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = ((side - SIDE) // 2 for side in small.shape[:2])
        square = np.ascontiguousarray(small[top : top + SIDE, left : left + SIDE, ::-1])
        return cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


PREFIX = "gallery:"
"""The prefix of the cache keys of test images; those of uploads are hashes."""


def load_gallery(sources: Sequence[Source], root: str | None = None) -> Gallery:
    """The first run's test images, except for those that another run was trained or validated on.

    Args:
        sources: of the models.
        root: where the runs' data are, if they have moved.

    Raises:
        InputError: `root` is given, and the data are not there.
    """
    first = sources[0]
    if first.config is None:
        return Gallery(note="the model file is not in a run's folder, so its data are not known")
    try:
        data = load_run_data(first.home, first.config, root, needed=False)
        test_set = subset_of(data, "test")
        training_stems: set[str] = set()
        for source in sources[1:]:
            if source.config is None:
                continue
            training_data = load_run_data(source.home, source.config, root, needed=False)
            if training_data.inspection.fingerprint == data.inspection.fingerprint:
                pairs = training_data.get_pairs("train") + training_data.get_pairs("val")
                training_stems |= {pair.stem for pair in pairs}
    except InputError as error:
        if root is not None:
            raise
        return Gallery(note=str(error).splitlines()[0])
    images = {PREFIX + pair.stem: pair for pair in test_set.pairs if pair.stem not in training_stems}
    return Gallery(test_set, images, "" if images else "another of the runs was trained on all of them")
