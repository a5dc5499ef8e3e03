"""What an inspection finds: images, problems, near-duplicates, and a split that keeps them together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polyp.commands.data.options import Options
from polyp.commands.options import name_options
from polyp.data.duplicates import find_links, group_images
from polyp.data.layouts import Listing
from polyp.data.pairs import (
    Check,
    Pair,
    check_pair,
    combine_checks,
    common_folder,
    describe_codings,
    find_suspicions,
    list_problems,
    map_pairs,
)
from polyp.data.split_files import AUTO, find_files
from polyp.data.splits import Splitter, draw_split, repair_split
from polyp.data.traits import measure_traits
from polyp.errors import InputError


class AmbiguousValuesError(InputError):
    """It is not clear which values of the masks are polyp."""

    def __init__(self, message: str, pairs: Sequence[Pair], checks: Sequence[Check]) -> None:
        super().__init__(message)
        self.pairs, self.checks = pairs, checks


class Image(NamedTuple):
    """An image without a problem: its files, height and width in pixels, and `measure_traits` of its mask."""

    pair: Pair
    size: tuple[int, int]
    traits: dict[str, float]


class Group(NamedTuple):
    """Images that show the same, and the reasons to think so."""

    images: list[Image]
    reasons: list[str]


@dataclass(frozen=True)
class Survey:
    """The result of an inspection."""

    name: str  # of the data set
    images: list[Image]  # without a problem
    problems: list[str]
    groups: list[Group]  # of near-duplicates, at least two images each
    split_name: str | None  # of the split in use
    split: dict[str, list[str]]  # the stems of each subset in use, without images that have a problem
    suggestion: dict[str, list[str]]  # the suggested subsets; empty if there are too few images
    notes: list[str]  # how the files and masks were understood
    suspicions: list[str]

    @cached_property
    def subsets(self) -> dict[str, str]:
        """The subset in use of each image, by its stem."""
        return {stem: name for name, stems in self.split.items() for stem in stems}

    @cached_property
    def divided_groups(self) -> list[Group]:
        """The groups with images in more than one subset of the split in use."""
        groups = []
        for group in self.groups:
            stems = [image.pair.stem for image in group.images]
            if len({self.subsets[stem] for stem in stems if stem in self.subsets}) > 1:
                groups.append(group)
        return groups


def inspect_images(name: str, listing: Listing, default_split: str | None, options: Options) -> Survey:
    """Read all images of a data set, and suggest a split.

    Raises:
        AmbiguousValuesError: it is not clear which values of the masks are polyp.
        InputError: no pair can be used, or the split does not fit.
    """
    pairs, traits = listing.pairs, dict[int, dict[str, float]]()
    splitter = Splitter(options.split or default_split or AUTO, options.seed, options.group)
    find_files(splitter.split)
    published, _ = splitter.read(pairs, listing.lists)  # finds errors before the images are read

    def check(number: int, pair: Pair) -> Check:
        def visit(number: int, image: np.ndarray, mask: np.ndarray) -> None:
            traits[number] = measure_traits(mask)

        return check_pair(number, pair, options.allow_empty, visit)

    checks = map_pairs(check, pairs, "checking images")
    try:
        notes = describe_codings(pairs, checks)
    except InputError as error:
        raise AmbiguousValuesError(str(error), pairs, checks) from error
    problems = [name_options(text) for text in list_problems(pairs, checks, listing.problems)]
    rows = [row for row, check in enumerate(checks) if not check.problems]
    if not rows:
        reason = f"none of its {len(pairs)} pairs can be used"
        raise InputError(f"{common_folder(pairs)}: {reason}, the first: {problems[0]}")
    inspection = combine_checks([checks[row] for row in rows])
    images = [Image(pairs[row], tuple(checks[row].values["sizes"]), traits[row]) for row in rows]
    links = find_links(inspection.thumbnails, inspection.fields)
    numbers = group_images(len(images), links)
    groups = [Group([], []) for _ in range(numbers.max() + 1)]
    for image, number in zip(images, numbers, strict=True):
        groups[number].images.append(image)
    for link in links:
        groups[numbers[link.first]].reasons.append(link.reason)
    stems, subsets = [image.pair.stem for image in images], dict[str, list[str]]()
    if published:
        group_of = dict(zip(stems, numbers.tolist(), strict=True))
        for subset, members in published.items():
            subsets[subset] = [stem for stem in members if stem in group_of]
        suggestion = repair_split(subsets, group_of)
        if not (suggestion["train"] and suggestion["test"]):
            suggestion = {}
    elif options.split is None and options.group is None:
        suggestion = draw_split(stems, numbers, inspection.shares, options.seed)
    else:
        suggestion = subsets = splitter.divide([image.pair for image in images], inspection)
    return Survey(
        name=name,
        images=images,
        problems=problems,
        groups=[group for group in groups if len(group.images) > 1],
        split_name=splitter.used if subsets else None,
        split=subsets,
        suggestion=suggestion,
        notes=[*listing.notes, *notes],
        suspicions=[name_options(text) for text in find_suspicions(inspection)],
    )
