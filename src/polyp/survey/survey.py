"""`polyp data`: a look at a data set before anything is trained on it, in the terminal and as a page."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from polyp import tables
from polyp.data.duplicates import Link, field_thumbnail, groups_of, links, thumbnail
from polyp.data.pairs import Inspection, Pair, find_pairs, read_pair
from polyp.data.sources import NAMED, find_source
from polyp.data.splits import SUBSETS, repaired, split_stems, suggested
from polyp.data.traits import traits
from polyp.errors import InputError, describe_error
from polyp.files import check_writable, write_text
from polyp.survey.report import TITLE, describe, tell

BLOCK = 64  # pairs in memory at a time
FEATURE_SIDE = 224  # pixels of the square that an encoder sees

Encode = Callable[[np.ndarray], np.ndarray]


@dataclass
class Survey:
    """What a look at every pair told; arrays and lists are in the order of `pairs`.

    Attributes:
        name: of the data set.
        pairs: those without a problem.
        problems: everything wrong, a line each.
        sizes: (N, 2) int, height and width in pixels.
        traits: of each image, see `polyp.data.traits.traits`.
        links: pairs of images that show the same.
        groups: (N,) int, the group of each image.
        split: the subsets in use, without images that have a problem; empty where none was named.
        suggestion: the subsets suggested; empty where there are too few images.
    """

    name: str
    pairs: list[Pair]
    problems: list[str]
    sizes: np.ndarray
    traits: list[dict[str, float]]
    links: list[Link]
    groups: np.ndarray
    split: dict[str, list[str]]
    suggestion: dict[str, list[str]]

    @property
    def duplicates(self) -> list[list[int]]:
        """The groups of more than one image, as rows of `pairs`."""
        return [np.flatnonzero(self.groups == g).tolist() for g in np.flatnonzero(np.bincount(self.groups) > 1)]

    @property
    def straddling(self) -> list[list[int]]:
        """The groups that are in more than one subset of the split in use."""
        subset = self.subset_of()
        return [
            rows for rows in self.duplicates if len({subset.get(self.pairs[row].stem, "") for row in rows} - {""}) > 1
        ]

    def subset_of(self) -> dict[str, str]:
        """The subset of each stem in the split in use."""
        return {stem: name for name, stems in self.split.items() for stem in stems}


def survey(
    data: str = "kvasir_seg",
    root: str | None = None,
    archive: str | None = None,
    images: str = "images",
    masks: str = "masks",
    split: str | None = None,
    allow_empty: bool = False,
    encoder: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    out: str | None = None,
) -> Path:
    """Look at a data set; print a summary, write a page and the suggested split beside it.

    Args:
        data: the name of a data set, see `polyp.data.sources`, or a folder.
        root, archive: of a named data set, as data.root and data.archive.
        images, masks: names of the subfolders of a folder.
        split: as data.split; by default that of the data set, if it has one.
        allow_empty: whether a mask without a polyp is no problem.
        encoder, weights: of smp, with a file of weights: near-duplicates are searched among its features as well.
        seed: of the suggested split, and of split random.
        out: the page; by default outputs/data/NAME.html. An older page there is replaced, a split never.

    Returns:
        The page.

    Raises:
        InputError: the data set is not there or has no pair that can be used, the split or the weights do not fit, or
            the page cannot be written.
    """
    try:
        source = find_source(data, root, archive, images, masks)
        split = split or source.default_split
        encode = _encoder(encoder, weights)
        folder = source.prepare()
        name = data if data in NAMED else folder.name
        page = Path(out).expanduser() if out else Path("outputs", "data", f"{name}.html")
        _check_writable(page)
        result = look(name, *find_pairs(folder, source.images, source.masks), split, allow_empty, encode, seed)
        suggestion = _write_split(result, page) if result.suggestion else None
        describe(result, suggestion, split).write(page)
    except InputError as error:
        raise InputError(_as_options(str(error))) from error
    tell(result, page, suggestion, split)
    return page


def look(
    name: str,
    pairs: Sequence[Pair],
    problems: Sequence[str],
    split: str | None = None,
    allow_empty: bool = False,
    encode: Encode | None = None,
    seed: int = 0,
) -> Survey:
    """Look at every pair once; a few are in memory at a time.

    Raises:
        InputError: no pair can be used, or the split does not fit.
    """
    subsets: dict[str, list[str]] = {}
    if split not in (None, "random"):  # wrong input is said before long work starts
        nothing = Inspection(np.empty((0, 2), np.int32), np.empty(0, np.float32), np.empty((0, 32, 32), np.uint8), "")
        subsets = split_stems(split, [pair.stem for pair in pairs], nothing, seed)
    good: list[Pair] = []
    looks: list[Seen] = []
    found = list(problems)
    root = os.path.commonpath([pairs[0].image, pairs[0].mask]) + os.sep
    for pair, seen in _seen(pairs, allow_empty, encode):
        if isinstance(seen, list):
            found += [_as_options(text.removeprefix(root)) for text in seen]
            continue
        good.append(pair)
        looks.append(seen)
    if not good:
        raise InputError(f"{root}: none of its {len(pairs)} pairs can be used; the first problem: {found[0]}")
    stems = [pair.stem for pair in good]
    sizes, rows, frames, fields, features = zip(*looks, strict=True)
    linked = links(np.stack(frames), np.stack(fields), np.stack(features) if encode else None)
    groups = groups_of(len(good), ((link.first, link.second) for link in linked))
    shares = np.array([row["polyp_share"] for row in rows])
    if split == "random":
        seen_sizes = np.array(sizes, np.int32)
        subsets = split_stems(
            split, stems, Inspection(seen_sizes, shares.astype(np.float32), np.stack(frames), ""), seed
        )
    usable = set(stems)
    subsets = {key: [stem for stem in members if stem in usable] for key, members in subsets.items()}
    if split not in (None, "random"):
        suggestion = repaired(subsets, dict(zip(stems, groups.tolist(), strict=True)))
        suggestion = suggestion if all(suggestion.values()) else {}
    else:
        suggestion = suggested(stems, groups, shares, seed)
    return Survey(name, good, sorted(found), np.array(sizes), list(rows), linked, groups, subsets, suggestion)


Seen = tuple[tuple[int, int], dict[str, float], np.ndarray, np.ndarray, np.ndarray | None]


def _seen(pairs: Sequence[Pair], allow_empty: bool, encode: Encode | None) -> Iterator[tuple[Pair, Seen | list[str]]]:
    def see(pair: Pair) -> tuple[Seen, np.ndarray | None] | list[str]:
        arrays = read_pair(pair, allow_empty)
        if isinstance(arrays, list):
            return arrays
        image, mask = arrays
        side = (FEATURE_SIDE, FEATURE_SIDE)
        small = cv2.resize(image, side, interpolation=cv2.INTER_AREA) if encode else None
        seen = (mask.shape[0], mask.shape[1]), traits(image, mask), thumbnail(image), field_thumbnail(image), None
        return seen, small

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # OpenCV lets go of the interpreter
        tqdm(total=len(pairs), desc="looking", leave=False, disable=None, delay=1) as bar,
    ):
        for start in range(0, len(pairs), BLOCK):
            block = pairs[start : start + BLOCK]
            views = list(pool.map(see, block))
            smalls = [view[1] for view in views if not isinstance(view, list) and view[1] is not None]
            encoded = iter(encode(np.stack(smalls)) if encode and smalls else ())
            for pair, view in zip(block, views, strict=True):
                yield pair, view if isinstance(view, list) else (*view[0][:4], next(encoded) if encode else None)
            bar.update(len(block))


def _encoder(encoder: str | None, weights: str | None) -> Encode | None:
    """Images (B, H, W, 3) uint8 to features (B, K): the mean over all places of an encoder's deepest layer."""
    if bool(encoder) != bool(weights):
        raise InputError("--encoder NAME and --weights FILE go together: features of untrained weights tell nothing")
    if not encoder or not weights:
        return None
    import segmentation_models_pytorch as smp
    import torch

    from polyp.model.network import check_encoder_name
    from polyp.model.weights import load_encoder_weights, normalisation

    check_encoder_name(encoder)
    network = smp.encoders.get_encoder(encoder, weights=None).eval()
    load_encoder_weights(network, encoder, weights)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation(encoder, weights))

    def encode(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
            return network(pixels.contiguous(memory_format=torch.channels_last))[-1].mean(dim=(2, 3)).numpy()

    return encode


OPTIONS = {
    "data.allow_empty=true": "--allow-empty",
    "model.encoder_weights=": "--weights ",
    "model.encoder=": "--encoder ",
}


def _as_options(text: str) -> str:
    """A message of the data's or the network's, which name keys, for somebody who gave options."""
    for key, option in OPTIONS.items():
        text = text.replace(key, option)
    if text.startswith("data.root=") and " is not a folder" in text:
        return text.removeprefix("data.root=") + f"; give a folder, {' or '.join(NAMED)}"
    if " has no folder '" in text:
        text = text.removeprefix("data.root=")
    text = re.sub(r"\bdata\.(root|archive|images|masks|split)=(?=[^\s])", r"--\1 ", text)
    return re.sub(r"\bdata\.(root|archive|images|masks|split)\b=?", r"--\1", text)


# ---- files


def _check_writable(page: Path) -> None:
    try:
        if page.exists() and f"<title>{TITLE}" not in page.read_text("utf-8", errors="replace")[:300]:
            raise InputError(f"{page} is there and is not a page of `polyp data`: give another --out")
        check_writable(page.parent)
    except OSError as error:
        raise InputError(f"cannot write {page}: {describe_error(error)}") from error


def _write_split(result: Survey, page: Path) -> Path:
    """The suggestion as NAME_split.csv, or with a number where another split has that name: it may be in use."""
    subset_of = sorted((stem, name) for name in SUBSETS for stem in result.suggestion[name])
    rows = [{"stem": stem, "subset": name} for stem, name in subset_of]
    text = tables.to_csv(rows, ("stem", "subset"))
    number = 1
    while True:
        file = page.with_name(f"{page.stem}_split{f'_{number}' if number > 1 else ''}.csv")
        if not file.exists():
            write_text(file, text)
            return file
        if file.read_bytes() == text.encode():
            return file
        number += 1
