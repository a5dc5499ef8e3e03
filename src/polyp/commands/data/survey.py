"""`polyp data`: a look at a data set before anything is trained on it, in the terminal and as a page."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, eq=False)
class Image:
    """An image without a problem.

    Attributes:
        pair: its files.
        size: height and width in pixels.
        traits: see `polyp.data.traits.measure_traits`.
    """

    pair: Pair
    size: tuple[int, int]
    traits: dict[str, float]


@dataclass(frozen=True)
class Survey:
    """The result of a look at every pair.

    Attributes:
        name: of the data set.
        images: those without a problem.
        problems: everything wrong, a line each.
        groups: of images that show the same, at least two each, with the reasons.
        split_name: of the split in use; None where there is none.
        split: the subsets in use, without images that have a problem; empty where there is none.
        suggestion: the suggested subsets; empty where there are too few images.
        notes: how the files and masks were understood.
        suspicions: what is possible but suspicious.
    """

    name: str
    images: list[Image]
    problems: list[str]
    groups: list[tuple[list[Image], list[str]]]
    split_name: str | None
    split: dict[str, list[str]]
    suggestion: dict[str, list[str]]
    notes: list[str]
    suspicions: list[str]


def run(options: Options) -> None:
    """Look at a data set; print a summary, write a page and the suggested split beside it.

    Raises:
        InputError: the data set is not there, has no pair that can be used, or it is not clear what is polyp
            in its masks; the split does not fit, or the page cannot be written.
    """
    try:
        name, source = find_source(options.data, options.root, options.archive, **options.layout)
        page = Path(options.out).expanduser() if options.out else Path("outputs", "data", f"{name}.html")
        _check_page(page)
        with terminal.status("finding the images"):
            source.prepare()
            listing = source.find()
        survey = _look(name, listing, source.default_split, options, page)
        suggestion = _write_split(survey.suggestion, page) if survey.suggestion else None
        with terminal.status("drawing the page"):
            build_page(survey, suggestion).write(page)
    except InputError as error:
        text = name_options(str(error))
        known = f"; give a folder, {' or '.join(NAMED)}" if text.endswith(" is not a folder") else ""
        raise InputError(text + known) from error
    print_summary(survey, page, suggestion)


def _look(name: str, listing: Listing, default_split: str | None, options: Options, page: Path) -> Survey:
    pairs, traits = listing.pairs, dict[int, dict[str, float]]()
    splitter = Splitter(options.split or default_split or AUTO, options.seed, options.group)
    find_files(splitter.split)
    published, _ = splitter.read(pairs, listing.lists)  # before long work

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
        count = f"none of its {len(pairs)} pairs can be used"
        raise InputError(f"{common_folder(pairs)}: {count}, the first: {problems[0]}")
    inspection = combine_checks([checks[row] for row in rows])
    images = [Image(pairs[row], tuple(checks[row].values["sizes"]), traits[row]) for row in rows]
    links = find_links(inspection.thumbnails, inspection.fields)
    numbers = group_images(len(images), links)
    members: dict[int, tuple[list[Image], list[str]]] = defaultdict(lambda: ([], []))
    for image, number in zip(images, numbers.tolist(), strict=True):
        members[number][0].append(image)
    for link in links:
        members[numbers[link.first]][1].append(link.reason)
    groups = [members[number] for number in sorted(members) if len(members[number][0]) > 1]
    stems = [image.pair.stem for image in images]
    if published:
        group_of = dict(zip(stems, numbers.tolist(), strict=True))
        subsets = {key: [stem for stem in found if stem in group_of] for key, found in published.items()}
        suggestion = repair_split(subsets, group_of)
        suggestion = suggestion if suggestion["train"] and suggestion["test"] else {}
    else:
        suggestion = draw_split(stems, numbers, inspection.shares, options.seed)
        drawn = options.split is not None or options.group is not None
        subsets = splitter.divide([image.pair for image in images], inspection) if drawn else {}
        suggestion = subsets or suggestion
    return Survey(
        name, images, problems, groups, splitter.used if subsets else None, subsets, suggestion,
        [*listing.notes, *notes], [name_options(text) for text in find_suspicions(inspection)],
    )  # fmt: skip


def _check_page(page: Path) -> None:
    try:
        if page.exists() and f"<title>{TITLE}" not in page.read_text("utf-8", errors="replace")[:300]:
            raise InputError(f"{page} is there and is not a page of `polyp data`: give another --out")
        check_writable(page.parent)
    except OSError as error:
        raise InputError(f"cannot write {page}: {describe_error(error)}") from error


def _write_split(subsets: dict[str, list[str]], page: Path) -> Path:
    """Write NAME_split.csv, with a number if another split has that name, which may be in use."""
    rows = sorted((stem, name) for name in SUBSETS for stem in subsets[name])
    text = to_csv([{"stem": stem, "subset": name} for stem, name in rows], ("stem", "subset"))
    number, file = 1, page.with_name(f"{page.stem}_split.csv")
    while file.exists() and file.read_bytes() != text.encode():
        number += 1
        file = page.with_name(f"{page.stem}_split_{number}.csv")
    if not file.exists():
        write_text(file, text)
    return file


def survey(**options: Any) -> None:
    """Look at a data set as `run` does."""
    run(Options(**options))
