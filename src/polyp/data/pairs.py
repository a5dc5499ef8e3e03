"""Images and their masks: matched by stem, read, and inspected."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from polyp.data.duplicates import SIDE, field_thumbnail, thumbnail
from polyp.data.masks import AUTO, MaskCoding, read_mask
from polyp.errors import InputError, several
from polyp.images import SUFFIXES, read_image

T = TypeVar("T")
Visit = Callable[[int, np.ndarray, np.ndarray], None]
"""Takes a number, image (H, W, 3) uint8 and mask (H, W) uint8 in {0, 1}; called by several threads."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        stem: its name in splits and tables: the image's path in the data set, without the ending and the
            folder of images.
        image, mask: their files; without a mask the image shows no polyp.
        source: the data set or centre that it is from; empty where there is only one.
        subset: train, val or test, where the folders say so.
        coding: which of the mask's values are polyp.
    """

    stem: str
    image: Path
    mask: Path | None
    source: str = ""
    subset: str | None = None
    coding: MaskCoding = AUTO

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (H, W, 3) uint8 RGB and its mask (H, W) uint8: 1 polyp, 0 background, 255 ignored.

        Raises:
            InputError: a file cannot be read.
        """
        image = read_image(self.image)
        if self.mask is None:
            return image, np.zeros(image.shape[:2], np.uint8)
        return image, read_mask(self.mask, self.coding)


@dataclass
class Inspection:
    """What `inspect` finds out about N pairs, in their order.

    Attributes:
        sizes: (N, 2) int32, heights and widths.
        shares: (N,) float32, the polyp's share of the pixels.
        thumbnails: (N, 32, 32) uint8, grey.
        fingerprint: 16 hex digits, of all stems and file contents.
        fields: (N, 32, 32) uint8, thumbnails of the fields of view.
    """

    sizes: np.ndarray
    shares: np.ndarray
    thumbnails: np.ndarray
    fingerprint: str
    fields: np.ndarray = field(default_factory=lambda: np.empty((0, SIDE, SIDE), np.uint8))


def find_pairs(root: Path, images: str, masks: str) -> tuple[list[Pair], list[str]]:
    """Match images and masks by stem; hidden files and files of other kinds are ignored.

    Returns:
        The pairs, sorted by stem, and the problems, a short text each: an image or mask alone, two files of
            one stem.

    Raises:
        InputError: there is no pair at all.
    """
    problems: list[str] = []
    image_of, mask_of = (_files_by_stem(root, name, problems) for name in (images, masks))
    pairs = [Pair(stem, image_of[stem], mask_of[stem]) for stem in sorted(image_of.keys() & mask_of.keys())]
    if not pairs:
        image, mask = (next(iter(paths.values()), Path("no image")).name for paths in (image_of, mask_of))
        reason = problems[0] if problems else f"in {images}/ there is {image}, in {masks}/ {mask}"
        raise InputError(f"{root} has no image and mask of the same stem: {reason}")
    alone = [image_of[stem].name for stem in image_of if stem not in mask_of]
    problems += [f"{images}/{name}: no mask in {masks}/" for name in alone]
    alone = [mask_of[stem].name for stem in mask_of if stem not in image_of]
    problems += [f"{masks}/{name}: no image in {images}/" for name in alone]
    return pairs, problems


def _files_by_stem(root: Path, folder: str, problems: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted((root / folder).iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            continue
        if not path.is_file():
            problems.append(f"{folder}/{path.name}: a broken link, or not a file")
        elif path.stem in files:
            problems.append(f"{folder}/{path.name}: has the same stem as {folder}/{files[path.stem].name}")
        else:
            files[path.stem] = path
    return files


def read_pair(pair: Pair, allow_empty: bool) -> tuple[np.ndarray, np.ndarray] | list[str]:
    """Image and mask of a pair as `read_image` and `read_mask` return them, or all of its problems."""
    arrays, problems = [], []
    for read in (lambda: read_image(pair.image), lambda: read_mask(pair.mask, pair.coding)):
        try:
            arrays.append(read())
        except InputError as error:
            problems.append(str(error))
    if problems:
        return problems
    image, mask = arrays
    if image.shape[:2] != mask.shape:
        sizes = "is {}x{}, its mask is {}x{}".format(*image.shape[1::-1], *mask.shape[::-1])
        rotated = " (rotated: does one of them have an orientation tag?)" * (image.shape[1::-1] == mask.shape)
        return [f"{pair.image}: {sizes}{rotated}"]
    if not (allow_empty or mask.any()):
        return [f"{pair.mask}: the mask is empty (data.allow_empty=true if that is meant)"]
    return image, mask


def map_pairs(function: Callable[[int, Pair], T], pairs: Sequence[Pair], label: str) -> list[T]:
    """The function's results for (number, pair), computed by several threads, with a progress bar."""
    with ThreadPoolExecutor() as pool:  # OpenCV releases the interpreter while it decodes
        results = pool.map(function, range(len(pairs)), pairs)
        return list(tqdm(results, label, len(pairs), leave=False, disable=None, delay=3))


def inspect(
    pairs: Sequence[Pair], problems: Sequence[str], allow_empty: bool = False, visit: Visit | None = None
) -> Inspection:
    """Decode every pair once and report all problems of the data set together.

    Args:
        pairs: at least one.
        problems: those that `find_pairs` met.
        allow_empty: accept masks without a polyp.
        visit: called with each pair that has no problem, which saves decoding it again.

    Raises:
        InputError: a headline with the folder and the number of problems, then a line for each.
    """

    def inspect_pair(number: int, pair: Pair) -> tuple | list[str]:
        arrays = read_pair(pair, allow_empty)
        if isinstance(arrays, list):
            return arrays
        image, mask = arrays
        if visit is not None:
            visit(number, image, mask)
        digest = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in (pair.image, pair.mask))
        content = os.fsencode(pair.stem) + b"\0" + digest
        return mask.shape, mask.mean(), thumbnail(image), field_thumbnail(image), content

    results = map_pairs(inspect_pair, pairs, "checking images")
    root = os.path.commonpath([pairs[0].image, pairs[0].mask])
    texts = [text for result in results if isinstance(result, list) for text in result]
    if lines := sorted([*problems, *(text.removeprefix(root + os.sep) for text in texts)]):
        headline = f"{root}: {len(lines)} problem{'s' * (len(lines) > 1)} with the images and masks"
        raise several(headline, lines)
    sizes, shares, thumbnails, fields, contents = zip(*results, strict=True)
    return Inspection(
        np.array(sizes, np.int32),
        np.array(shares, np.float32),
        np.stack(thumbnails),
        hashlib.sha256(b"".join(contents)).hexdigest()[:16],
        np.stack(fields),
    )
