"""Images and their masks: matched by stem, read, and inspected."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from polyp.data.duplicates import SIDE, field_thumbnail, thumbnail
from polyp.errors import InputError, describe_error, several

T = TypeVar("T")
Visit = Callable[[int, np.ndarray, np.ndarray], None]
"""Takes a number, image (H, W, 3) uint8 and mask (H, W) uint8 in {0, 1}; called by several threads."""

EXTENSIONS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    stem: str
    image: Path
    mask: Path


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
        if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
            continue
        if not path.is_file():
            problems.append(f"{folder}/{path.name}: a broken link, or not a file")
        elif path.stem in files:
            problems.append(f"{folder}/{path.name}: has the same stem as {folder}/{files[path.stem].name}")
        else:
            files[path.stem] = path
    return files


def _decode(path: Path, colour: int) -> np.ndarray:
    # Python reads the file: OpenCV cannot open every name. An orientation tag would turn the image and not
    # its mask.
    flags = colour | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({describe_error(error)})") from error
    except cv2.error:  # an empty file, an image beyond OpenCV's limit
        pixels = None
    if pixels is None:
        raise InputError(f"{path}: not a readable image")
    if pixels.dtype != np.uint8:  # which of its values is white is unknown
        raise InputError(f"{path}: has {pixels.dtype} values: save it with 8 bits")
    return pixels


def read_image(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB.

    Raises:
        InputError: the file is unreadable, or has more than 8 bits a channel.
    """
    return cv2.cvtColor(_decode(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> np.ndarray:
    """A mask as (H, W) uint8 in {0, 1}: polyp where the grey value is above 127.

    Raises:
        InputError: the file is unreadable, not of 8 bits, or coded otherwise (0 and 1, say), which would look
            empty.
    """
    grey = _decode(path, cv2.IMREAD_GRAYSCALE)
    if 0 < grey.max() <= 127:
        reason = f"its values go up to {grey.max()} only"
        raise InputError(f"{path}: {reason}: save background as 0 and polyp as 255")
    return (grey > 127).astype(np.uint8)


def read_pair(pair: Pair, allow_empty: bool) -> tuple[np.ndarray, np.ndarray] | list[str]:
    """Image and mask of a pair as `read_image` and `read_mask` return them, or all of its problems."""
    arrays, problems = [], []
    for read, path in ((read_image, pair.image), (read_mask, pair.mask)):
        try:
            arrays.append(read(path))
        except InputError as error:
            problems.append(str(error))
    if problems:
        return problems
    image, mask = arrays
    if image.shape[:2] != mask.shape:
        return ["{}: is {}x{}, its mask is {}x{}".format(pair.image, *image.shape[1::-1], *mask.shape[::-1])]
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
