"""The test images of a run, which the page offers by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageOps

from polyp.commands.app.inference_queue import InputImage
from polyp.commands.predict.results import encode
from polyp.data.pairs import Pair
from polyp.errors import InputError
from polyp.runs.data import load_run_data
from polyp.runs.model import ModelSource

SIDE = 160  # pixels of a thumbnail's side


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images with their truths."""

    images: Mapping[str, Pair] = field(default_factory=dict)  # by key, in the order of the page
    note: str = ""  # why there are no images, for the user

    def read(self, key: str) -> InputImage:
        """The image with a key of `images`, and its truth; raises InputError if it can no longer be read."""
        return InputImage(key, *self.images[key].read())

    @lru_cache(maxsize=4096)  # noqa: B019 - some kilobytes each; there is one gallery
    def make_thumbnail(self, key: str) -> bytes:
        """A small square picture of an image, as JPEG; raises as `read` does."""
        square = ImageOps.fit(Image.fromarray(self.read(key).pixels), (SIDE, SIDE))
        return encode(np.asarray(square), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 80])


PREFIX = "gallery:"  # of the cache keys of test images; those of uploads are hashes


def load_gallery(sources: Sequence[ModelSource], root: str | None = None) -> Gallery:
    """The first run's test images, except for those that another run was trained or validated on.

    `root` is where the runs' data are if they have moved; raises InputError if they are not there.
    """
    first = sources[0]
    if first.config is None:
        return Gallery(note="the model file is not in a run's folder, so its data are not known")
    try:
        data = load_run_data(first.home, first.config, root, needed=False)
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
    images = {PREFIX + pair.stem: pair for pair in data.get_pairs("test") if pair.stem not in training_stems}
    return Gallery(images, "" if images else "another of the runs was trained on all of them")
