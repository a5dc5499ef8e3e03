"""Near-duplicates: neighbouring frames of a video, or one frame saved twice.

Three comparisons, each with a threshold chosen by eye on Kvasir-SEG: of its 499,500 pairs of images the 35
that correlate most as frames, the 40 nearest by hash and the 56 nearest as fields of view.

- frame: correlation of the whole images at 32x32. Above .99 there are four pairs, and all show the same;
  between .94 and .99 chance comes in, since all frames share the black corners. There a perceptual hash must
  agree (at most 6 of 64 bits differ): two pairs more, both right. The hash alone is of no use here: pairs of
  other polyps differ by 2 bits.
- field: correlation of the fields of view, without black border, corners and the box of the lower left. Above
  .94 there are 18 pairs, all right; 14 of them are one frame saved twice, with and without border. The next,
  .934, is wrong.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SIDE = 32  # pixels of a thumbnail
FRAME_CORRELATION = 0.99
SIMILAR_CORRELATION = 0.94  # of frames whose hashes must agree
HASH_BITS = 6  # that may differ between hashes that agree
FIELD_CORRELATION = 0.94
BLOCK = 1024  # rows of the N x N comparison in memory at a time


@dataclass(frozen=True)
class Link:
    """Two images, by their numbers, that show the same, and the comparisons that say so."""

    first: int
    second: int
    reason: str


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(32, 32) uint8 grey of an image (H, W, 3) uint8 RGB."""
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def field_thumbnail(image: np.ndarray) -> np.ndarray:
    """(32, 32) uint8 grey of the field of view: of the rows and columns that are not mostly black."""
    bright = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA).max(axis=2) > 30
    rows, columns = (np.flatnonzero(bright.mean(axis=axis) > 0.25) for axis in (1, 0))
    if min(len(rows), len(columns)) < 16:
        return thumbnail(image)
    height, width = image.shape[:2]
    top, bottom = rows[0] * height // 128, (rows[-1] + 1) * height // 128
    left, right = columns[0] * width // 128, (columns[-1] + 1) * width // 128
    view = image[top:bottom, left:right]
    return thumbnail(view) if view.size else thumbnail(image)


def group_images(count: int, links: Iterable[Link], labels: Sequence[str] = ()) -> np.ndarray:
    """The groups of images that links, links of links or equal labels connect.

    Args:
        count: of the images.
        links: see `find_links`.
        labels: of all images, or empty.

    Returns:
        (count,) int64, the group of each image, numbered from 0 in their order.
    """
    first: dict[str, int] = {}
    edges = [(link.first, link.second) for link in links]
    edges += [(first.setdefault(label, row), row) for row, label in enumerate(labels)]
    a, b = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def find_links(thumbnails: np.ndarray, fields: np.ndarray, split: int | None = None) -> list[Link]:
    """Pairs of images that show the same, by any of the comparisons above.

    Args:
        thumbnails: (N, 32, 32) uint8, see `thumbnail`.
        fields: (N, 32, 32) uint8, see `field_thumbnail`.
        split: compare the first `split` images with those from `split` on only.
    """
    reasons: dict[tuple[int, int], list[str]] = {}
    hashes = perceptual_hash(thumbnails)
    for a, b, correlation in _find_pairs(_normalise(thumbnails), SIMILAR_CORRELATION, split):
        bits = int((hashes[a] != hashes[b]).sum())
        if correlation > FRAME_CORRELATION or bits <= HASH_BITS:
            reasons[a, b] = [f"frames correlate {correlation:.3f}, hashes differ by {bits} of 64 bits"]
    for a, b, correlation in _find_pairs(_normalise(fields[:, _inner_pixels()]), FIELD_CORRELATION, split):
        reasons.setdefault((a, b), []).append(f"fields of view correlate {correlation:.3f}")
    return [Link(*pair, "; ".join(texts)) for pair, texts in sorted(reasons.items())]


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 64) bool of (N, 32, 32): lowest 8x8 frequencies above their median (Zauner, 2010)."""
    low = np.array([cv2.dct(small.astype(np.float32))[:8, :8] for small in thumbnails]).reshape(-1, 64)
    return low > np.median(low[:, 1:], axis=1, keepdims=True)  # the first is the mean brightness


def _inner_pixels() -> np.ndarray:
    """Pixels of a field of view that neither its corners nor text and box on the left reach."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    disc: np.ndarray = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.46**2
    return disc & (x > 0.12) & ~((x < 0.42) & (y > 0.58))


def _normalise(thumbnails: np.ndarray) -> np.ndarray:
    """(N, pixels) of mean 0 and norm 1, whose products are the correlations."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, 1e-6)  # an image of one grey correlates with none


def _find_pairs(rows: np.ndarray, threshold: float, split: int | None) -> Iterator[tuple[int, int, float]]:
    """The pairs of rows whose correlation is above the threshold, with the correlation."""
    end = len(rows) if split is None else split
    for start in range(0, end, BLOCK):  # the whole N x N matrix would not fit for a long video
        offset = start if split is None else split
        products = rows[start : min(start + BLOCK, end)] @ rows[offset:].T
        linked = products > threshold
        for first, second in np.argwhere(np.triu(linked, 1) if split is None else linked):
            yield start + int(first), offset + int(second), float(products[first, second])
