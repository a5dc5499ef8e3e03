"""Which images train, which choose the best epoch, and which are only for the final number."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from polyp.data.duplicates import find_links, group_images
from polyp.data.pairs import Inspection, Pair
from polyp.data.split_files import (
    AUTO,
    DRAWN,
    FOLDERS,
    LEAVE_ONE_OUT,
    RANDOM,
    SUBSETS,
    read_split,
)
from polyp.errors import InputError, nearest

log = logging.getLogger(__name__)

BLOCK = 10  # of so many images a random split gives one to val and one to test
NORMAL_FOLDS = 5  # of so many parts of the normal frames one is for the test, where there are no folds


@dataclass
class Splitter:
    """Divides a data set into train, val and test.

    Attributes:
        split: `official`, `pranet`, `random`, `folders`, `leave-one-group-out`, `auto`, the path of a CSV
            with the columns stem and subset, or of a folder with train.txt and test.txt. `auto` is `folders`
            if the data set's folders say which images are for the test, else `random`.
        seed: of what is drawn; the same seed and images give the same subsets.
        group: what keeps images in one subset: `folder`, `source`, a column of the split's CSV, or
            FILE.csv:COLUMN. Near-duplicates stay together in any case.
        folds: K for a cross-validation, whose test sets are K parts of all images; `split` is then of no
            account.
        fold: which of the parts is the test set, from 0; with leave-one-group-out which of the groups.
        used: the name or path of the split in use, after `read` or `divide`: for `auto`, the one it is.
        parts: of a cross-validation: `folds`, or the number of groups that are left out one by one; else 0.

    Raises:
        InputError: on construction, for an impossible value.
    """

    split: str = AUTO
    seed: int = 0
    group: str | None = None
    folds: int | None = None
    fold: int = 0
    used: str = field(default="", init=False)
    parts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.folds is not None and (type(self.folds) is not int or self.folds < 2):
            raise InputError(f"data.folds={self.folds} must be a whole number of at least 2, or null")
        if type(self.fold) is not int or self.fold < 0:
            raise InputError(f"data.fold={self.fold} must be a whole number from 0 on")
        if self.folds is not None and self.fold >= self.folds:
            raise InputError(f"data.fold={self.fold} must be below data.folds={self.folds}")
        if self.fold and self.folds is None and self.split != LEAVE_ONE_OUT:
            raise InputError(f"data.fold={self.fold} needs data.folds=NUMBER or data.split={LEAVE_ONE_OUT}")
        if self.split == LEAVE_ONE_OUT and self.group is None:
            raise InputError(f"data.split={LEAVE_ONE_OUT} needs data.group=folder, source or FILE.csv:COLUMN")

    @property
    def is_drawn(self) -> bool:
        """Whether the seed decides the test set, after `read` or `divide`."""
        return self.folds is not None or self.used == RANDOM

    def divide(
        self, pairs: Sequence[Pair], inspection: Inspection, lists: Path | None = None
    ) -> dict[str, list[str]]:
        """The stems of each of train, val and test; none is empty and no stem is in two.

        Args:
            pairs: the images with polyps or masks.
            inspection: of the same images in the same order.
            lists: a folder of the data set with train.txt and test.txt, for `auto`.

        Raises:
            InputError: the split's file is malformed, it names images that are not there, or the images are
                too few or too much of one kind to be divided.
        """
        stems = [pair.stem for pair in pairs]
        subsets, labels = self.read(pairs, lists)
        if subsets and self.folds is None:
            if labels:
                _warn_of_straddling(subsets, dict(zip(stems, labels, strict=True)), self.group)
            if subsets["val"]:
                return subsets
        links = find_links(inspection.thumbnails, inspection.fields)
        groups = group_images(len(stems), links, labels)
        test = None
        if self.folds is not None:
            if groups.max() + 1 < self.folds:
                reason = (
                    f"needs as many groups of images that stay together, and there are {groups.max() + 1}"
                )
                raise InputError(f"data.folds={self.folds} {reason}")
            test = {stems[row] for row in self._draw_fold(groups, inspection.shares, self.folds)}
        elif self.split == LEAVE_ONE_OUT:
            test = self._leave_out(stems, labels)
        if test is not None:
            subsets = {
                "train": [stem for stem in stems if stem not in test],
                "val": [],
                "test": [stem for stem in stems if stem in test],
            }
        elif not subsets:
            subsets = draw_split(stems, groups, inspection.shares, self.seed)
            if not subsets:
                raise InputError(
                    f"data.split=random cannot divide {len(stems)} images in {groups.max() + 1} groups that "
                    "stay together (near-duplicates, data.group) into 80/10/10: add images, or give "
                    "data.split=FILE.csv"
                )
        if self.group is None:
            train = set(subsets["train"])
            members = [pair for pair in pairs if self.is_drawn or pair.stem in train]  # of what is drawn from
            folders = {pair.stem.rpartition("/")[0] for pair in members}
            if len(folders) > len({pair.source for pair in members}):
                log.info("the images are in %d folders: data.group=folder keeps each, such as a sequence, in "
                         "one subset", len(folders))  # fmt: skip
        return subsets if subsets["val"] else self._draw_val(subsets, stems, groups, inspection.shares)

    def divide_normal(self, pairs: Sequence[Pair], inspection: Inspection) -> dict[str, list[str]]:
        """The stems of normal frames for train and test: a fold, or a fifth, is for the test.

        Near-duplicates stay together, and frames of one folder if there are enough folders; frames of a
        single sequence all go to train.
        """
        folds = self.folds or NORMAL_FOLDS
        links = find_links(inspection.thumbnails, inspection.fields)
        folders = [str(pair.image.parent) for pair in pairs]
        groups = group_images(len(pairs), links, folders if len(set(folders)) >= folds else ())
        test: set[int] = set()
        if groups.max() + 1 < folds:
            log.warning("data.normal: the %d frames make %d groups of near-duplicates or folders, too few to "
                        "test on some: all are trained on", len(pairs), groups.max() + 1)  # fmt: skip
        else:
            test = self._draw_fold(groups, inspection.shares, folds)
        return {
            "train": [pair.stem for row, pair in enumerate(pairs) if row not in test],
            "test": [pair.stem for row, pair in enumerate(pairs) if row in test],
        }

    def read(
        self, pairs: Sequence[Pair], lists: Path | None = None
    ) -> tuple[dict[str, list[str]], list[str]]:
        """The subsets that files or folders give, if any, and the group of each image, if there are groups.

        Arguments and errors are those of `divide`.
        """
        stems = [pair.stem for pair in pairs]
        subsets: dict[str, list[str]] = {}
        columns: dict[str, dict[str, str]] = {}
        self.used = self.split
        if self.split == AUTO and lists is not None:
            self.used = str(lists)
            log.info("data.split=auto: the subsets are those of the lists in %s", lists)
            subsets, _ = read_split(str(lists), stems)
        elif self.split in (AUTO, FOLDERS):
            subsets = _read_folders(pairs)
            if self.split == FOLDERS and not subsets:
                raise InputError(
                    "data.split=folders needs folders named train and test (and val): give data.split=random"
                )
            self.used = FOLDERS
        elif self.split not in DRAWN:
            needs_subset = self.group is None and self.folds is None
            subsets, columns = read_split(self.split, stems, needs_subset)
        labels = self._list_labels(pairs, columns)
        self.parts = self.folds or (len(set(labels)) if self.split == LEAVE_ONE_OUT else 0)
        if self.folds is not None:
            self.used = f"{self.folds} folds"
        elif not subsets and self.split != LEAVE_ONE_OUT:
            self.used = RANDOM
        return subsets, labels

    def _list_labels(self, pairs: Sequence[Pair], columns: Mapping[str, Mapping[str, str]]) -> list[str]:
        """The group of each image by `group`; empty without."""
        if self.group is None:
            return []
        if self.group == "folder":
            return [pair.stem.rpartition("/")[0] for pair in pairs]
        if self.group == "source":
            return [pair.source for pair in pairs]
        file, colon, column = self.group.rpartition(":")
        stems = [pair.stem for pair in pairs]
        if colon:
            path = Path(file).expanduser()
            if not path.is_file():
                raise InputError(f"data.group={self.group}: {path} is not a file")
            columns = read_split(str(path), stems, needs_subset=False)[1]
        count = sum(column not in columns.get(stem, {}) for stem in stems)
        if count:
            reason = f"{count} images have no {column}" if columns else "the split is no CSV with columns"
            choices = {name for row in columns.values() for name in row} | {"folder", "source"}
            advice = f"{nearest(column, choices)}, or FILE.csv:COLUMN"
            raise InputError(f"data.group={self.group}: {reason}: {advice}")
        return [columns[stem][column] for stem in stems]

    def _draw_fold(self, groups: np.ndarray, shares: np.ndarray, folds: int) -> set[int]:
        """The rows of fold `fold`: groups stay together, and each fold has small and large polyps alike."""
        from sklearn.model_selection import StratifiedGroupKFold

        bins = max(1, min(10, len(shares) // folds))
        strata = np.argsort(np.argsort(shares, kind="stable"), kind="stable") * bins // len(shares)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=self.seed)
        tests = [test for _, test in splitter.split(np.zeros(len(shares)), strata, groups)]
        return set(tests[self.fold % folds].tolist())

    def _leave_out(self, stems: Sequence[str], labels: Sequence[str]) -> set[str]:
        """The stems of group `fold`."""
        names = sorted(set(labels))
        if len(names) < 2 or self.fold >= len(names):
            listed = ", ".join(f"{number}: {name}" for number, name in enumerate(names[:12]))
            raise InputError(
                f"data.fold={self.fold} is no group of data.group={self.group}, which has {len(names)} "
                f"({listed})"
            )
        log.info("data.split=%s: the test set is %s, fold %d of %d", self.split, names[self.fold], self.fold,
                 len(names))  # fmt: skip
        return {stem for stem, label in zip(stems, labels, strict=True) if label == names[self.fold]}

    def _draw_val(
        self, subsets: dict[str, list[str]], stems: Sequence[str], groups: np.ndarray, shares: np.ndarray
    ) -> dict[str, list[str]]:
        """Take a tenth of train for validation."""
        row_of = {stem: row for row, stem in enumerate(stems)}
        rows = [row_of[stem] for stem in subsets["train"]]
        drawn = draw_split(subsets["train"], groups[rows], shares[rows], self.seed, parts=("val",))
        if not drawn:
            raise InputError(
                f"data.split={self.split}: validation needs images of its own, and the {len(rows)} of train "
                "cannot be divided: add images, or name the subset val in the split"
            )
        log.info("validation: %d images of train, drawn by data.split_seed=%d", len(drawn["val"]), self.seed)
        return drawn | {"test": subsets["test"]}


def _warn_of_straddling(
    subsets: Mapping[str, Sequence[str]], label_of: Mapping[str, str], group: str | None
) -> None:
    """Warn of groups that a published split divides."""
    subsets_of = defaultdict(set)
    for name, stems in subsets.items():
        for stem in stems:
            subsets_of[label_of[stem]].add(name)
    divided = [label for label, names in subsets_of.items() if len(names) > 1]
    if divided:
        log.warning(
            "data.group=%s: %d of %d groups are in several subsets of the split, such as %s",
            group, len(divided), len(subsets_of), divided[0],
        )  # fmt: skip


def _read_folders(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """The subsets that the folders' names say; empty if they do not name train and test."""
    subsets = {name: [pair.stem for pair in pairs if pair.subset == name] for name in SUBSETS}
    if not subsets["train"] or not (subsets["test"] or subsets["val"]):
        return {}
    if not subsets["test"]:
        raise InputError(
            "data.split: the folders name train and val but no test: give data.split=random, or rename val "
            "to test, and validation is drawn from train"
        )
    unused = sum(pair.subset is None for pair in pairs)
    if unused:
        log.info("data.split=folders leaves out %d images in folders of no subset", unused)
    return subsets


def draw_split(
    stems: Sequence[str],
    groups: np.ndarray,
    shares: np.ndarray,
    seed: int,
    parts: Sequence[str] = ("test", "val"),
) -> dict[str, list[str]]:
    """A tenth of the images for each part, the others for train: 80/10/10 for test and val.

    Groups stay together, and each subset has small and large polyps alike. A part that no group fits into
    gets the smallest one.

    Args:
        stems: of the data set.
        groups: (N,) int; images of one number show the same.
        shares: (N,) the polyps' shares of the pixels.
        seed: the same seed and images give the same split.
        parts: the subsets that get a tenth each.

    Returns:
        The stems of train and of each part, in the order of SUBSETS; empty where the images or groups are too
        few to leave none of them empty.
    """
    if len(stems) < BLOCK:
        return {}
    groups = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(groups)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    ranked = np.argsort(np.bincount(groups, weights=shares) / sizes, kind="stable")
    # From each ten groups of neighbouring size one is drawn for test and one for val, in this order.
    blocks = [
        np.random.default_rng([seed, start]).permutation(ranked[start : start + BLOCK])
        for start in range(0, len(ranked), BLOCK)
    ]
    order = [block[place] for place in range(BLOCK) for block in blocks if place < len(block)]
    room = {"train": len(stems)} | {name: round(len(stems) / BLOCK) for name in parts}
    subsets: dict[str, list[int]] = {name: [] for name in SUBSETS if name in ("train", *parts)}
    for group in order:
        subset = next((name for name in parts if sizes[group] <= room[name]), "train")
        room[subset] -= sizes[group]
        subsets[subset].append(group)
    for name in parts:
        if not subsets[name] and len(subsets["train"]) > 1:
            smallest = min(subsets["train"], key=lambda group: sizes[group])
            subsets["train"].remove(smallest)
            subsets[name].append(smallest)
    if not all(subsets.values()):
        return {}
    return {
        name: [stems[row] for row in np.sort(np.concatenate([members[group] for group in drawn]))]
        for name, drawn in subsets.items()
    }


def repair_split(subsets: dict[str, list[str]], groups: Mapping[str, int]) -> dict[str, list[str]]:
    """Change the train and val of a split so that no group is in two subsets; test stays as it is.

    Images of train and val that show the same as one of test are left out; a group in both train and val goes
    to train. `groups` has the group of each stem.
    """
    test_groups = {groups[stem] for stem in subsets["test"]}
    train = [stem for stem in subsets["train"] if groups[stem] not in test_groups]
    val = [stem for stem in subsets["val"] if groups[stem] not in test_groups]
    train_groups = {groups[stem] for stem in train}
    return {
        "train": sorted([*train, *(stem for stem in val if groups[stem] in train_groups)]),
        "val": [stem for stem in val if groups[stem] not in train_groups],
        "test": list(subsets["test"]),
    }
