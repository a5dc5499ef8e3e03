"""Images and their masks: read, named by their stems, and inspected."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from polyp import terminal
from polyp.data.duplicates import field_thumbnail, thumbnail
from polyp.data.masks import AUTO, Levels, MaskCoding, describe_coding, read_levels, read_mask
from polyp.errors import override_word, several
from polyp.images import IGNORED, SUFFIXES, read_image
from polyp.settings import collect

T = TypeVar("T")
Visit = Callable[[int, np.ndarray, np.ndarray], None]
"""Takes a number, image (H, W, 3) uint8 and mask (H, W) uint8 in {0, 1, 255}; several threads call it."""


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


class StemIndex:
    """Finds the stem that a name in a split or in annotations means.

    A name is a stem with or without its ending and the folder images, or the last part of a stem if no other
    stem ends alike. In place of stems, a mapping from other names to the stems can be given.
    """

    def __init__(self, stems: Mapping[str, str] | Iterable[str]) -> None:
        self.stems = dict(stems) if isinstance(stems, Mapping) else {stem: stem for stem in stems}
        self._ends: dict[str, list[str]] = defaultdict(list)
        for name, stem in self.stems.items():
            while "/" in name:
                name = name.partition("/")[2]
                self._ends[name].append(stem)

    def find(self, name: str) -> str | None:
        """The stem, or None if there is none or more than one."""
        path = PurePosixPath(*(part for part in PurePosixPath(name).parts if part != "images"))
        names = [str(path)]
        if path.suffix.lower() in SUFFIXES:
            names.append(str(path.with_suffix("")))
        for name in names:
            if name in self.stems:
                return self.stems[name]
        for name in names:
            if len(stems := self._ends.get(name, [])) == 1:
                return stems[0]
        return None


ARRAYS = {
    "sizes": np.int32, "shares": np.float32, "thumbnails": np.uint8, "fields": np.uint8,
    "borders": np.float32, "masks": np.uint64,
}  # fmt: skip
"""The arrays of an `Inspection`."""


@dataclass
class Inspection:
    """What `inspect` measures of N pairs, in their order.

    Attributes:
        sizes: (N, 2) int32, heights and widths.
        shares: (N,) float32, the polyp's share of the pixels that count.
        thumbnails: (N, 32, 32) uint8, grey.
        fields: (N, 32, 32) uint8, thumbnails of the fields of view.
        borders: (N,) float32, the polyp's share of the image's outermost pixels.
        masks: (N,) uint64, equal for masks of equal content.
        fingerprint: 16 hex digits, of all stems, file contents and what is polyp in them.
        notes: what the masks hold, a line for each data set whose masks are not of 0 and 255.
    """

    sizes: np.ndarray
    shares: np.ndarray
    thumbnails: np.ndarray
    fields: np.ndarray
    borders: np.ndarray
    masks: np.ndarray
    fingerprint: str
    notes: str = ""

    def select(self, rows: slice) -> "Inspection":
        """The inspection with the arrays of some of the pairs only."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ARRAYS})


@dataclass(frozen=True, eq=False)
class Check:
    """The result of `check_pair`, which keeps no pixels; with problems, only `levels` may be set."""

    problems: Sequence[str] = ()  # a short text each
    levels: Levels | None = None  # of the mask; None without a file or if it cannot be read
    values: Mapping[str, Any] = field(default_factory=dict)  # a row of each array of `Inspection`
    content: bytes = b""  # for the fingerprint


def check_pair(number: int, pair: Pair, allow_empty: bool, visit: Visit | None = None) -> Check:
    """Read a pair and look for everything that is wrong with it.

    A mask without a polyp is right if `allow_empty`. `visit` is called with `number` if nothing is wrong.
    """
    image = mask = levels = None
    problems: list[str] = []
    with collect(problems):
        image = read_image(pair.image)
    with collect(problems):
        if pair.mask is not None:
            mask, levels = read_levels(pair.mask, pair.coding)
    if image is None or problems:
        return Check(problems, levels)
    if mask is None:
        mask = np.zeros(image.shape[:2], np.uint8)
    if image.shape[:2] != mask.shape:
        sizes = "is {}x{}, its mask is {}x{}".format(*image.shape[1::-1], *mask.shape[::-1])
        rotated = " (rotated: does one of them have an orientation tag?)" * (image.shape[1::-1] == mask.shape)
        return Check([f"{pair.image}: {sizes}{rotated}"], levels)
    if not (allow_empty or pair.mask is None or (mask == 1).any()):
        return Check([f"{pair.mask}: the mask is empty (data.allow_empty=true if that is meant)"], levels)
    if visit is not None:
        visit(number, image, mask)
    values = {
        "sizes": mask.shape,
        "shares": polyp_share(mask),
        "thumbnails": thumbnail(image),
        "fields": field_thumbnail(image),
        "borders": polyp_share(np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])),
        "masks": int.from_bytes(hashlib.sha256(mask.tobytes()).digest()[:8], "little"),
    }
    content = os.fsencode(pair.stem) + b"\0"
    for path in (pair.image, pair.mask):
        if path is not None:
            content += hashlib.sha256(path.read_bytes()).digest()
    if pair.coding != AUTO:
        content += repr(pair.coding).encode()
    return Check((), levels, values, content)


def map_pairs(function: Callable[[int, Pair], T], pairs: Sequence[Pair], label: str) -> list[T]:
    """The function's results for (number, pair), computed by several threads, with a progress bar."""
    with ThreadPoolExecutor() as pool:  # OpenCV and Pillow release the interpreter while they decode
        results = pool.map(function, range(len(pairs)), pairs)
        return list(terminal.track(results, label, len(pairs)))


def polyp_share(mask: np.ndarray) -> float:
    """The share of polyp among the pixels of a mask that count."""
    return float(np.count_nonzero(mask == 1) / max(1, int(np.count_nonzero(mask != IGNORED))))


def inspect(
    pairs: Sequence[Pair], problems: Sequence[str], allow_empty: bool = False, visit: Visit | None = None
) -> Inspection:
    """Decode every pair once and report all problems of the data set together.

    Args:
        pairs: at least one.
        problems: of the search for the files.
        allow_empty: accept masks without a polyp.
        visit: called with each pair that has no problem, which saves decoding it again.

    Raises:
        InputError: it is not clear what is polyp in the masks; or a headline with the folder and the number
            of problems, then a line for each.
    """
    checks = map_pairs(
        lambda number, pair: check_pair(number, pair, allow_empty, visit), pairs, "checking images"
    )
    notes = describe_codings(pairs, checks)
    if lines := list_problems(pairs, checks, problems):
        headline = f"{common_folder(pairs)}: {len(lines)} problem{'s' * (len(lines) > 1)}"
        raise several(f"{headline} with the images and masks", lines)
    return combine_checks(checks, notes)


def common_folder(pairs: Sequence[Pair]) -> str:
    """The folder that all files lie in."""
    return os.path.commonpath({path.parent for pair in pairs for path in (pair.image, pair.mask) if path})


def list_problems(pairs: Sequence[Pair], checks: Sequence[Check], problems: Sequence[str]) -> list[str]:
    """All problems, a line each, sorted, without the folder that all files lie in."""
    root = common_folder(pairs) + os.sep
    texts = [text for check in checks for text in check.problems]
    return sorted([*problems, *(text.removeprefix(root) for text in texts)])


def combine_checks(checks: Sequence[Check], notes: Sequence[str] = ()) -> Inspection:
    """The inspection of pairs without problems, at least one."""
    arrays = {name: np.array([check.values[name] for check in checks], ARRAYS[name]) for name in ARRAYS}
    fingerprint = hashlib.sha256(b"".join(check.content for check in checks)).hexdigest()[:16]
    return Inspection(**arrays, fingerprint=fingerprint, notes="\n".join(notes))


def describe_codings(pairs: Sequence[Pair], checks: Sequence[Check]) -> list[str]:
    """What the masks of each source hold, a sentence each, without those of 0 and 255.

    Raises:
        InputError: the masks of a source are not two-valued, and its coding does not say what is polyp.
    """
    groups: dict[tuple[str, MaskCoding], list[tuple[Levels, Path]]] = defaultdict(list)
    for pair, check in zip(pairs, checks, strict=True):
        if pair.mask is not None and check.levels is not None:
            groups[pair.source, pair.coding].append((check.levels, pair.mask))
    notes = []
    for (source, coding), masks in groups.items():
        levels, files = zip(*masks, strict=True)
        name = os.path.commonpath({file.parent for file in files})
        if text := describe_coding(levels, coding, name, files):
            notes.append(f"{source}: {text}" if source else text)
    return notes


def find_suspicions(inspection: Inspection) -> list[str]:
    """What is possible but suspicious about the masks of a data set, a sentence each."""
    shares = inspection.shares
    if not shares.any():
        return ["no mask has a polyp: a network learns to predict none"]
    if len(shares) > 1 and len(set(inspection.masks.tolist())) == 1:
        return [f"all {len(shares)} masks are the same"]
    share, border = float(np.median(shares)), float(np.median(inspection.borders))
    if share > 0.5 or border > 0.9:
        return [
            f"the masks look inverted or full: in the median mask {share:.0%} of the pixels and {border:.0%} "
            f"of those at the border are polyp. If black is polyp, add "
            f"{override_word('data.polyp_values', '== 0')}"
        ]
    return []
