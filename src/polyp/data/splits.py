"""Which images train, which choose the best epoch, and which are only for the final number.

A split is a CSV with the columns `stem,subset`. Two are shipped, both of Kvasir-SEG: `official` (the owners'
880/120) and `pranet` (the literature's 900/100). Their test sets are as published; validation (80 and 90
images) was drawn from the rest with a fixed seed, spread evenly over the polyps' sizes, and without images
whose whole frame has a near-duplicate; `polyp data` also finds frames that are in the set twice, cut
differently. `random` draws a split.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from polyp.data.duplicates import find_links, group_images
from polyp.data.pairs import Inspection
from polyp.errors import InputError, nearest
from polyp.report.tables import unescape_formula

log = logging.getLogger(__name__)

SUBSETS = ("train", "val", "test")
SHIPPED = ("official", "pranet")
BLOCK = 10  # of so many images a random split gives one to val and one to test


def split_file(split: str) -> Path | None:
    """The CSV of a split; `random` has none.

    Raises:
        InputError: the split is unknown.
    """
    if split == "random":
        return None
    shipped = split in SHIPPED
    file = (
        Path(__file__).with_name("splits") / f"kvasir-seg_{split}.csv"
        if shipped
        else Path(split).expanduser()
    )
    if not file.is_file():
        raise InputError(
            f"data.split={split} is neither a file nor known: {nearest(split, [*SHIPPED, 'random'])}"
        )
    return file


def split_stems(
    split: str, pairs_stems: Sequence[str], inspection: Inspection, seed: int
) -> dict[str, list[str]]:
    """Divide a data set into train, val and test.

    Args:
        split: `official`, `pranet`, `random`, or the path of a CSV `stem,subset`.
        pairs_stems: the stems of the data set.
        inspection: of the same images in the same order.
        seed: for `random`; the same seed and images give the same split.

    Returns:
        The stems of each of train, val and test; none is empty and no stem is in two.

    Raises:
        InputError: the split is unknown, its file is malformed, it names images that are not there, or the
            data set is too small or too much of one kind to be divided.
    """
    if split != "random":
        return read_split(split, pairs_stems)
    groups = group_images(len(pairs_stems), find_links(inspection.thumbnails, inspection.fields))
    if subsets := draw_split(pairs_stems, groups, inspection.shares, seed):
        return subsets
    raise InputError(
        f"data.split=random cannot divide {len(pairs_stems)} images in {groups.max() + 1} groups of "
        "near-duplicates, which stay together, into 80/10/10: add images, or give data.split=FILE.csv"
    )


def check_stems(split: str, subsets: Mapping[str, Sequence[str]], stems: Sequence[str]) -> None:
    """Check that the images of a split are in the data.

    Raises:
        InputError: some are not.
    """
    used = [stem for members in subsets.values() for stem in members]
    if absent := sorted(set(used) - set(stems)):
        some = f"{len(absent)} of its {len(used)} images are not in the data ({', '.join(absent[:5])}"
        some += ", ...)" if len(absent) > 5 else ")"
        advice = (
            " is a split of Kvasir-SEG: for other data give data.split=random;" if split in SHIPPED else ":"
        )
        raise InputError(f"data.split={split}{advice} {some}")
    if unused := len(stems) - len(used):
        log.info("data.split=%s uses %d images and leaves %d out", split, len(used), unused)


def read_split(split: str, stems: Sequence[str]) -> dict[str, list[str]]:
    """The subsets of a split other than `random`; arguments, result and errors as of `split_stems`."""
    file = split_file(split)
    assert file is not None
    try:
        text = file.read_text("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    lines = [
        (n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip() and not line.startswith("#")
    ]
    rows = [(n, [unescape_formula(field.strip()) for field in next(csv.reader([line]))]) for n, line in lines]
    if not rows or rows[0][1] != ["stem", "subset"]:
        raise InputError(f"{file}, line {rows[0][0] if rows else 1}: the first line must be stem,subset")
    subsets: dict[str, list[str]] = {name: [] for name in SUBSETS}
    line_of: dict[str, int] = {}
    for n, row in rows[1:]:
        if len(row) != 2:
            raise InputError(f"{file}, line {n}: has {len(row)} columns instead of the two of stem,subset")
        stem, subset = row
        if subset not in subsets:
            raise InputError(
                f"{file}, line {n}: the subset '{subset}' is unknown: {nearest(subset, SUBSETS)}"
            )
        if stem in line_of:
            raise InputError(f"{file}, line {n}: {stem} was given in line {line_of[stem]} already")
        line_of[stem] = n
        subsets[subset].append(stem)
    if empty := [name for name in SUBSETS if not subsets[name]]:
        raise InputError(
            f"{file}: no image is given for {' and '.join(empty)}; all of {', '.join(SUBSETS)} are needed"
        )
    check_stems(split, subsets, stems)
    return subsets


def draw_split(
    stems: Sequence[str], groups: np.ndarray, shares: np.ndarray, seed: int
) -> dict[str, list[str]]:
    """A split of 80/10/10: groups stay together, and each subset has small and large polyps alike.

    Args:
        stems: of the data set.
        groups: (N,) int from 0; images of one group show the same.
        shares: (N,) the polyps' shares of the pixels.
        seed: the same seed and images give the same split.

    Returns:
        As `split_stems`; empty where the images or groups are too few to leave none of the three empty.
    """
    if len(stems) < BLOCK:
        return {}
    ranked = np.argsort(np.bincount(groups, weights=shares) / np.bincount(groups), kind="stable")
    # From each ten groups of neighbouring size one is drawn for test and one for val, in this order.
    blocks = [
        np.random.default_rng([seed, start]).permutation(ranked[start : start + BLOCK])
        for start in range(0, len(ranked), BLOCK)
    ]
    order = [block[place] for place in range(BLOCK) for block in blocks if place < len(block)]
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    room = dict.fromkeys(("test", "val"), round(len(stems) / BLOCK))
    rows: dict[str, list[int]] = {name: [] for name in SUBSETS}
    for group in order:
        subset = next((name for name in room if len(rows[name]) + len(members[group]) <= room[name]), "train")
        rows[subset].extend(members[group])
    return (
        {name: [stems[row] for row in sorted(rows[name])] for name in SUBSETS} if all(rows.values()) else {}
    )


def repair_split(subsets: dict[str, list[str]], groups: Mapping[str, int]) -> dict[str, list[str]]:
    """A split without groups that straddle, and with the same test set, so that numbers stay comparable.

    Images of train and val that show the same as one of test are left out; a group in both train and val goes
    to train.

    Args:
        subsets: as `split_stems` gives them.
        groups: the group of each stem.
    """
    test_groups = {groups[stem] for stem in subsets["test"]}
    train, val = (
        [stem for stem in subsets[name] if groups[stem] not in test_groups] for name in ("train", "val")
    )
    train_groups = {groups[stem] for stem in train}
    moved = [stem for stem in val if groups[stem] in train_groups]
    return {
        "train": sorted([*train, *moved]),
        "val": [stem for stem in val if stem not in moved],
        "test": list(subsets["test"]),
    }
