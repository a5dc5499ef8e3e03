"""`polyp data`: inspects a data set before training, and shows the result in the terminal and as a page."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polyp import terminal
from polyp.commands.data.options import Options
from polyp.commands.data.report import TITLE, build_page, build_values_page, print_summary
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
from polyp.data.sources import NAMED, find_source
from polyp.data.split_files import AUTO, SUBSETS, find_files
from polyp.data.splits import Splitter, draw_split, repair_split
from polyp.data.traits import measure_traits
from polyp.errors import InputError, describe_error
from polyp.files import check_writable, write_text
from polyp.report.tables import to_csv


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


def run(options: Options) -> None:
    """Inspect a data set; print a summary, write a page and the suggested split beside it.

    Raises:
        InputError: the data set does not exist, has no usable pair, or has masks with ambiguous values; the
            split does not fit, or the page cannot be written.
    """
    try:
        name, source = find_source(options.data, options.root, options.archive, **options.layout)
        page = Path(options.out).expanduser() if options.out else Path("outputs", "data", f"{name}.html")
        _check_page(page)
        with terminal.status("finding the images"):
            source.prepare()
            listing = source.find()
        survey = _inspect(name, listing, source.default_split, options, page)
        split_file = _write_split(survey.suggestion, page) if survey.suggestion else None
        with terminal.status("drawing the page"):
            build_page(survey, split_file).write(page)
    except InputError as error:
        text = name_options(str(error))
        names = f"; give a folder, {' or '.join(NAMED)}" if text.endswith(" is not a folder") else ""
        raise InputError(text + names) from error
    print_summary(survey, page, split_file)


def _inspect(name: str, listing: Listing, default_split: str | None, options: Options, page: Path) -> Survey:
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
        build_values_page(name, str(error), pairs, checks).write(page)
        raise InputError(f"{error}\n  {page} shows the values") from error
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


def _check_page(page: Path) -> None:
    try:
        if page.exists() and f"<title>{TITLE}" not in page.read_text("utf-8", errors="replace")[:300]:
            raise InputError(f"{page} is there and is not a page of `polyp data`: give another --out")
        check_writable(page.parent)
    except OSError as error:
        raise InputError(f"cannot write {page}: {describe_error(error)}") from error


def _write_split(subsets: dict[str, list[str]], page: Path) -> Path:
    """Write NAME_split.csv, or NAME_split_2.csv if there is another split, which may be in use."""
    rows = sorted((stem, name) for name in SUBSETS for stem in subsets[name])
    text = to_csv([{"stem": stem, "subset": name} for stem, name in rows], ("stem", "subset"))
    number, file = 1, page.with_name(f"{page.stem}_split.csv")
    while file.exists() and file.read_bytes() != text.encode():
        number += 1
        file = page.with_name(f"{page.stem}_split_{number}.csv")
    if not file.exists():
        write_text(file, text)
    return file
