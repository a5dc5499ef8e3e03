"""A data set is a folder with images/ and masks/ of equal stems: find the pairs, read them, and look at each once."""

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
from polyp.errors import InputError, several
from polyp.images import read_image, read_mask

T = TypeVar("T")
Visit = Callable[[int, np.ndarray, np.ndarray], None]
"""Called with a pair's number, its image (H, W, 3) uint8 and its mask (H, W) uint8 in {0, 1}, from several threads."""

EXTENSIONS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class Folder:
    """A data set that the user has on disk; the fields are the keys of conf/data/folder.yaml."""

    root: str | None = None
    images: str = "images"
    masks: str = "masks"

    def check(self) -> None:
        """Check that the root and both subfolders are there.

        Raises:
            InputError: as `prepare`.
        """
        self.prepare()

    def prepare(self) -> Path:
        """The root, with both subfolders known to be there; nothing is written.

        Raises:
            InputError: the root is not given, or it or a subfolder is not there.
        """
        if not self.root:
            raise InputError(f"data.root=FOLDER is needed: the folder that holds {self.images}/ and {self.masks}/")
        root = Path(self.root).expanduser().absolute()
        if not root.is_dir():
            raise InputError(f"data.root={self.root} is not a folder")
        for key, name in (("images", self.images), ("masks", self.masks)):
            if not (root / name).is_dir():
                there = ", ".join(sorted(f"'{path.name}'" for path in root.iterdir() if path.is_dir())) or "none"
                way_out = f"its folders are {there}: say which with data.images= and data.masks="
                raise InputError(f"data.root={self.root} has no folder '{name}' (data.{key}); {way_out}")
        if (root / self.images).samefile(root / self.masks):
            raise InputError(f"data.images and data.masks are the same folder: {root / self.images}")
        return root


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    stem: str
    image: Path
    mask: Path


def find_pairs(root: Path, images: str, masks: str) -> tuple[list[Pair], list[str]]:
    """Match images and masks by stem; hidden files and files of other kinds are passed over.

    Returns:
        The pairs, sorted by stem, and what is wrong, a short text each: an image or mask alone, two files of one stem.

    Raises:
        InputError: there is no pair at all.
    """
    problems: list[str] = []
    found: list[dict[str, Path]] = []
    for folder in (images, masks):
        by_stem: dict[str, Path] = {}
        for path in sorted((root / folder).iterdir()):
            if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
                continue
            if not path.is_file():
                problems.append(f"{folder}/{path.name}: a broken link, or not a file")
            elif path.stem in by_stem:
                problems.append(f"{folder}/{path.name}: has the same stem as {folder}/{by_stem[path.stem].name}")
            else:
                by_stem[path.stem] = path
        found.append(by_stem)
    image_of, mask_of = found
    pairs = [Pair(stem, image_of[stem], mask_of[stem]) for stem in sorted(image_of.keys() & mask_of.keys())]
    if not pairs:
        first = [next((path.name for path in by_stem.values()), "no image") for by_stem in found]
        why = problems[0] if problems else f"in {images}/ there is {first[0]}, in {masks}/ {first[1]}"
        raise InputError(f"{root} has no image and mask of the same stem: {why}")
    problems += [f"{images}/{path.name}: no mask in {masks}/" for s, path in image_of.items() if s not in mask_of]
    problems += [f"{masks}/{path.name}: no image in {images}/" for s, path in mask_of.items() if s not in image_of]
    return pairs, problems


@dataclass
class Inspection:
    """What one look at every pair tells, in the order of the pairs."""

    sizes: np.ndarray  # (N, 2) int32, height and width
    shares: np.ndarray  # (N,) float32, the polyp's share of the pixels
    thumbnails: np.ndarray  # (N, 32, 32) uint8, grey
    fingerprint: str  # 16 hex digits over all stems and file contents
    fields: np.ndarray = field(default_factory=lambda: np.empty((0, SIDE, SIDE), np.uint8))
    """(N, 32, 32) uint8, thumbnails of the fields of view"""


def read_pair(pair: Pair, allow_empty: bool) -> tuple[np.ndarray, np.ndarray] | list[str]:
    """Image and mask of a pair as `read_image` and `read_mask` give them, or all that is wrong with it."""
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
        turned = " (turned: does one of them have an orientation tag?)" * (image.shape[1::-1] == mask.shape)
        return ["{}: is {}x{}, its mask is {}x{}{}".format(pair.image, *image.shape[1::-1], *mask.shape[::-1], turned)]
    if not (allow_empty or mask.any()):
        return [f"{pair.mask}: the mask is empty (data.allow_empty=true if that is meant)"]
    return image, mask


def map_pairs(function: Callable[[int, Pair], T], pairs: Sequence[Pair], label: str) -> list[T]:
    """The function's results for (number, pair), computed by several threads, with a progress bar if it takes long."""
    with ThreadPoolExecutor() as pool:  # OpenCV lets go of the interpreter while it decodes
        results = pool.map(function, range(len(pairs)), pairs)
        return list(tqdm(results, label, len(pairs), leave=False, disable=None, delay=3))


def inspect(
    pairs: Sequence[Pair], problems: Sequence[str], allow_empty: bool = False, visit: Visit | None = None
) -> Inspection:
    """Decode every pair once and report everything that is wrong with the data set at once.

    Args:
        pairs: at least one.
        problems: those that `find_pairs` met.
        allow_empty: accept masks without a polyp.
        visit: called with each pair that has no problem, so that nobody has to decode it again.

    Raises:
        InputError: anything is wrong; it has a headline with the folder and the count, then a line for each problem.
    """

    def look(number: int, pair: Pair) -> tuple[tuple[int, ...], float, np.ndarray, np.ndarray, bytes] | list[str]:
        """Size, share, thumbnails and digest of a pair, or its problems."""
        arrays = read_pair(pair, allow_empty)
        if isinstance(arrays, list):
            return arrays
        image, mask = arrays
        if visit is not None:
            visit(number, image, mask)
        digest = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in (pair.image, pair.mask))
        return mask.shape, float(mask.mean()), thumbnail(image), field_thumbnail(image), digest

    looks = map_pairs(look, pairs, "checking images")
    root = os.path.commonpath([pairs[0].image, pairs[0].mask])
    found = [text.removeprefix(root + os.sep) for look in looks if isinstance(look, list) for text in look]
    if lines := sorted([*problems, *found]):
        headline = f"{root}: {len(lines)} problem{'s' * (len(lines) > 1)} with the images and masks"
        raise several(headline, lines)
    sizes, shares, thumbnails, fields, digests = zip(*looks, strict=True)
    content = b"".join(os.fsencode(pair.stem) + b"\0" + digest for pair, digest in zip(pairs, digests, strict=True))
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    return Inspection(
        np.array(sizes, np.int32), np.array(shares, np.float32), np.stack(thumbnails), fingerprint, np.stack(fields)
    )
