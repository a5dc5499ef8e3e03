"""The test images of a run, which its page offers by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape

import cv2
import numpy as np

from polyp.commands.app.desk import Photo
from polyp.commands.evaluate.testsets import TestSet, subset_of
from polyp.errors import InputError, pick
from polyp.runs.data import load_run_data
from polyp.runs.model import Source

SIDE = 160
"""Pixels of a thumbnail's shorter side: twice what is shown, for fine screens."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images and truths, reached by their names alone.

    Attributes:
        test_set: reads them.
        names: of the images, in order.
        gone: why there is none, for people.
    """

    test_set: TestSet | None = None
    names: Mapping[str, int] = field(default_factory=dict)
    gone: str = ""

    def photo(self, name: str) -> Photo:
        """An image with its truth.

        Raises:
            InputError: there is none of that name, or it can no longer be read.
        """
        number = pick("image", name, self.names)
        assert self.test_set is not None
        image, truth = self.test_set.read(self.test_set.pairs[number])
        return Photo(key_of(name), name, image, truth)

    @lru_cache(maxsize=4096)  # noqa: B019 - of some kilobytes each; there is one gallery
    def thumbnail(self, name: str) -> bytes:
        """A small picture of an image, as JPEG; raises as `photo` does."""
        image = self.photo(name).image
        scale = SIDE / min(image.shape[:2])
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = ((side - SIDE) // 2 for side in small.shape[:2])
        square = np.ascontiguousarray(small[top : top + SIDE, left : left + SIDE, ::-1])
        return cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()

    def html(self) -> str:
        """The thumbnails, a button each."""
        if not self.names:
            return f'<p class="hint">No test images here: {escape(self.gone)}</p>'
        buttons = (
            f'<button type="button" data-name="{escape(name)}" title="{escape(name)}" '
            f'aria-pressed="{"false" if number else "true"}">'
            f'<img src="gallery/{number}.jpg" loading="lazy" width="80" height="80" alt="{escape(name)}"></button>'
            for number, name in enumerate(self.names)
        )
        return f'<div class="gallery" role="group" aria-label="Test images">{"".join(buttons)}</div>'


def key_of(name: str) -> str:
    """What tells a gallery's image from all others; uploaded ones go by a digest."""
    return f"gallery:{name}"


def gallery_of(sources: Sequence[Source], root: str | None = None) -> Gallery:
    """The first run's test images, without those that another of the runs was trained or chosen on.

    Args:
        sources: of the models.
        root: where the runs' data are, if they have moved.

    Raises:
        InputError: `root` is given, and the data are not there.
    """
    first, *others = sources
    if first.config is None:
        return Gallery(gone="the checkpoint is not in a run's folder, so nobody knows its data")
    try:
        data = load_run_data(first.home, first.config, root, needed=False)
        test_set = subset_of(data, "test")
        known: set[str] = set()
        for other in others:
            if other.config is not None:
                theirs = load_run_data(other.home, other.config, root, needed=False)
                if theirs.inspection.fingerprint == data.inspection.fingerprint:
                    known |= {pair.stem for subset in ("train", "val") for pair in theirs.get_pairs(subset)}
    except InputError as error:
        if root is not None:
            raise
        return Gallery(gone=str(error).splitlines()[0])
    names = {pair.stem: number for number, pair in enumerate(test_set.pairs) if pair.stem not in known}
    return Gallery(test_set, names, "every one was seen by another of the runs in training" if not names else "")
