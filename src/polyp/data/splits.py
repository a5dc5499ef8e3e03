"""Which images train, which choose the best epoch, and which are only for the final number.

A split is a CSV with the columns `stem,subset`. Two are shipped, both of Kvasir-SEG: `official` (the owners' 880/120)
and `pranet` (the literature's 900/100). Their test sets are as published; validation (80 and 90 images) was drawn from
the rest with a fixed seed, spread evenly over the polyps' sizes, and without images whose whole frame has a
near-duplicate; `polyp data` also finds frames that are in the set twice, cut differently.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from polyp.data.duplicates import near_duplicates
from polyp.data.pairs import Inspection
from polyp.errors import InputError, nearest
from polyp.tables import unescape

log = logging.getLogger(__name__)

SUBSETS = ("train", "val", "test")
SHIPPED = ("official", "pranet")
SHARE = 0.1  # of the images, for each of val and test in a random split
FEWEST = 10  # images that a random split can be made of


def split_file(split: str) -> Path | None:
    """The CSV of a split; `random` has none.

    Raises:
        InputError: the split is unknown.
    """
    if split == "random":
        return None
    shipped = split in SHIPPED
    file = Path(__file__).with_name("splits") / f"kvasir-seg_{split}.csv" if shipped else Path(split).expanduser()
    if not file.is_file():
        raise InputError(f"data.split={split} is neither a file nor known: {nearest(split, [*SHIPPED, 'random'])}")
    return file


def split_stems(split: str, pairs_stems: Sequence[str], inspection: Inspection, seed: int) -> dict[str, list[str]]:
    """Divide a data set into train, val and test.

    Args:
        split: `official`, `pranet`, `random`, or the path of a CSV `stem,subset`.
        pairs_stems: the stems of the data set.
        inspection: the look at the same images in the same order.
        seed: for `random`; the same seed and images give the same split.

    Returns:
        The stems of each of train, val and test; none is empty and no stem is in two.

    Raises:
        InputError: the split is unknown, its file is malformed, it names images that are not there, or the data set is
            too small or too much of one kind to be divided.
    """
    if (file := split_file(split)) is None:
        return _random(pairs_stems, inspection, seed)
    shipped = split in SHIPPED
    subsets = _read(file)
    stems = [stem for subset in subsets.values() for stem in subset]
    if absent := sorted(set(stems) - set(pairs_stems)):
        some = f"{len(absent)} of its {len(stems)} images are not in the data ({', '.join(absent[:5])}"
        some += ", ...)" if len(absent) > 5 else ")"
        advice = " is a split of Kvasir-SEG: for other data give data.split=random;" if shipped else ":"
        raise InputError(f"data.split={split}{advice} {some}")
    if unused := len(pairs_stems) - len(stems):
        log.info("data.split=%s uses %d images and leaves %d out", split, len(stems), unused)
    return subsets


def _read(file: Path) -> dict[str, list[str]]:
    try:
        text = file.read_text("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip() and not line.startswith("#")]
    rows = [(n, [unescape(field.strip()) for field in next(csv.reader([line]))]) for n, line in lines]
    if not rows or rows[0][1] != ["stem", "subset"]:
        raise InputError(f"{file}, line {rows[0][0] if rows else 1}: the first line must be stem,subset")
    subsets: dict[str, list[str]] = {name: [] for name in SUBSETS}
    line_of: dict[str, int] = {}
    for n, row in rows[1:]:
        if len(row) != 2:
            raise InputError(f"{file}, line {n}: has {len(row)} columns instead of the two of stem,subset")
        stem, subset = row
        if subset not in subsets:
            raise InputError(f"{file}, line {n}: the subset '{subset}' is unknown: {nearest(subset, SUBSETS)}")
        if stem in line_of:
            raise InputError(f"{file}, line {n}: {stem} was given in line {line_of[stem]} already")
        line_of[stem] = n
        subsets[subset].append(stem)
    if empty := [name for name in SUBSETS if not subsets[name]]:
        raise InputError(f"{file}: no image is given for {' and '.join(empty)}; all of {', '.join(SUBSETS)} are needed")
    return subsets


def _random(stems: Sequence[str], inspection: Inspection, seed: int) -> dict[str, list[str]]:
    """80/10/10, near-duplicates in one subset."""
    if len(stems) < FEWEST:
        raise InputError(f"data.split=random needs {FEWEST} images or more, and the data has {len(stems)}")
    groups = near_duplicates(inspection.thumbnails)
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    chosen = _divided(groups, order)
    if empty := [name for name in SUBSETS if not chosen[name]]:
        raise InputError(
            f"data.split=random leaves nothing for {' and '.join(empty)}: near-duplicates stay together, and the "
            f"{len(stems)} images make {len(order)} such groups; give data.split=FILE.csv"
        )
    return {name: [stems[i] for i in sorted(chosen[name])] for name in SUBSETS}


def _divided(groups: np.ndarray, order: np.ndarray) -> dict[str, list[int]]:
    """Fill test, then val, then train with whole groups in an order; the rest goes to train."""
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    room = dict.fromkeys(("test", "val"), round(len(groups) * SHARE))
    chosen: dict[str, list[int]] = {name: [] for name in SUBSETS}
    for group in order:
        subset = next((name for name in room if len(chosen[name]) + len(members[group]) <= room[name]), "train")
        chosen[subset].extend(members[group])
    return chosen


def suggested(stems: Sequence[str], groups: np.ndarray, shares: np.ndarray, seed: int) -> dict[str, list[str]]:
    """A new division, 80/10/10: groups stay together, and each subset has small and large polyps alike.

    Args:
        stems: of the data set.
        groups: (N,) int from 0; images of one group show the same.
        shares: (N,) the polyps' shares of the pixels.
        seed: the same seed and images give the same split.

    Returns:
        As `split_stems`; empty where the images or groups are too few to leave none of the three empty.
    """
    if len(stems) < FEWEST:
        return {}
    sizes = np.bincount(groups, weights=shares) / np.bincount(groups)
    ranked = np.argsort(sizes, kind="stable")
    # From each ten groups of neighbouring size one is chosen for test and one for val.
    blocks = [
        np.random.default_rng([seed, n]).permutation(ranked[n : n + round(1 / SHARE)])
        for n in range(0, len(ranked), round(1 / SHARE))
    ]
    turns = [[block[turn] for block in blocks if turn < len(block)] for turn in range(round(1 / SHARE))]
    chosen = _divided(groups, np.array([group for turn in turns for group in turn]))
    return {name: [stems[i] for i in sorted(chosen[name])] for name in SUBSETS} if all(chosen.values()) else {}


def repaired(subsets: dict[str, list[str]], groups: Mapping[str, int]) -> dict[str, list[str]]:
    """A split without groups that straddle, and with the same test set, so that numbers stay comparable.

    Images of train and val that show the same as one of test are left out; a group in both train and val goes to train.

    Args:
        subsets: as `split_stems` gives them.
        groups: the group of each stem.
    """
    tested = {groups[stem] for stem in subsets["test"]}
    kept = {name: [stem for stem in subsets[name] if groups[stem] not in tested] for name in ("train", "val")}
    trained = {groups[stem] for stem in kept["train"]}
    moved = [stem for stem in kept["val"] if groups[stem] in trained]
    return {
        "train": sorted([*kept["train"], *moved]),
        "val": [stem for stem in kept["val"] if stem not in moved],
        "test": list(subsets["test"]),
    }
