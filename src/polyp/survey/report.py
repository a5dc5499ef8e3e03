"""What a survey looks like: a summary in the terminal, and a page with charts and pictures."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from polyp.data.folder import read_image, read_mask
from polyp.data.splits import SHIPPED
from polyp.data.traits import STRATA, find_strata
from polyp.report.html import Page
from polyp.report.pictures import TRUTH, contour

if TYPE_CHECKING:
    from polyp.survey.survey import Survey

TITLE = "Data: "
HEIGHT = 288  # pixels of a picture on the page
PICTURES = 24  # on the contact sheet
GROUPS = 40  # groups of near-duplicates with pictures; all are in the table
MEMBERS = 8  # pictures of a group
LINES = 10  # problems and groups that the terminal names


def print_summary(survey: "Survey", page: Path, suggestion: Path | None) -> None:
    """Print a summary, and where the page and the suggested split are."""
    console = Console(highlight=False, soft_wrap=True)
    shares = np.array([row["polyp_share"] for row in survey.traits])
    low, high = survey.sizes.min(axis=0), survey.sizes.max(axis=0)
    sizes = f"{low[1]}x{low[0]} to {high[1]}x{high[0]}"
    lines = [f"[bold]{escape(survey.name)}[/]  {_count(len(survey.pairs), 'image')}, {sizes}"]
    if survey.split:
        lines.append(f"  split      {escape(str(survey.split_name))}: {_count_subsets(survey.split)}")
    lines.append(
        f"  polyps     median {np.median(shares):.1%} of the pixels, {shares.min():.1%} to {shares.max():.1%}"
    )
    for name, counts in _count_strata(survey).items():
        lines.append(f"  {name:<10} " + ", ".join(f"{count} {part}" for part, count in counts.items()))
    lines.append(f"[{'yellow' if survey.problems else 'green'}]{_count(len(survey.problems), 'problem')}[/]")
    lines += _first(survey.problems)
    lines.append(f"[{'yellow' if survey.straddling else 'green'}]{_describe_duplicates(survey)}[/]")
    lines += _first([_name_members(survey, rows) for rows in survey.straddling])
    lines += [_describe_suggestion(survey), f"\n  the page   {escape(os.path.relpath(page))}"]
    if suggestion:
        lines.append(f"  the split  data.split={escape(os.path.relpath(suggestion))}")
    for line in lines:
        console.print(line)


def build_page(survey: "Survey", suggestion: Path | None) -> Page:
    """The page of a survey."""
    page = Page(
        f"{TITLE}{survey.name}",
        f"{_count(len(survey.pairs), 'image')} and as many masks; {_count(len(survey.problems), 'problem')}. "
        f"{_describe_duplicates(survey)}",
    )
    page.section("Problems", "" if survey.problems else "None: every image has a readable mask of its size.")
    if survey.problems:
        page.text(
            "These files are left out of this page, and training refuses to start with them.", "warning"
        )
        page.table([{"problem": text} for text in survey.problems])
    _add_sizes(page, survey)
    _add_pictures(page, survey)
    _add_duplicates(page, survey)
    page.section("Split")
    if survey.split:
        page.text(f"In use: {survey.split_name}, {_count_subsets(survey.split)}.")
    page.text(_describe_suggestion(survey))
    if suggestion:
        page.text(
            f"It is in {suggestion.name}, beside this page: python train.py ... data.split={suggestion}"
        )
        page.table(_split_rows(survey))
    return page


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _count_subsets(subsets: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(stems)} {name}" for name, stems in subsets.items())


def _count_strata(survey: "Survey") -> dict[str, dict[str, int]]:
    """The count of each bin that occurs, by stratum."""
    counts = Counter(item for row in survey.traits for item in find_strata(row).items())
    return {
        name: {part: counts[name, part] for part in stratum.bins if counts[name, part]}
        for name, stratum in STRATA.items()
    }


def _name_members(survey: "Survey", rows: Sequence[int]) -> str:
    """The members of a group with their subsets."""
    subset = survey.subset_of()
    stems = [survey.pairs[row].stem for row in rows]
    return ", ".join(f"{stem} ({subset.get(stem, 'unused')})" if subset else stem for stem in stems)


def _first(lines: Sequence[str]) -> list[str]:
    more = [f"  ... and {len(lines) - LINES} more: see the page"] * (len(lines) > LINES)
    return [f"  {escape(line)}" for line in lines[:LINES]] + more


def _describe_duplicates(survey: "Survey") -> str:
    groups = survey.duplicates
    if not groups:
        return "No near-duplicates were found."
    text = f"{_count(len(groups), 'group')} of near-duplicates with {sum(map(len, groups))} images"
    if survey.split:
        count = len(survey.straddling)
        text += f"; {count or 'none'} of them straddle{'s' * (count == 1)} the subsets of split {survey.split_name}"
    return text + "."


def _describe_suggestion(survey: "Survey") -> str:
    if not survey.suggestion:
        return "No split is suggested: there are too few images, or too few that differ."
    text = f"Suggested: {_count_subsets(survey.suggestion)}."
    if survey.split_name in (None, "random"):
        return f"{text} Near-duplicates stay together, and each subset has small and large polyps alike."
    left_out = sum(map(len, survey.split.values())) - sum(map(len, survey.suggestion.values()))
    moved = len(set(survey.suggestion["train"]) - set(survey.split["train"]))
    same = ", so that numbers stay comparable" if survey.split_name in SHIPPED else ""
    return (
        f"{text} The test set is kept as it is{same}; {_count(left_out, 'image')} of train and val that "
        f"show{'s' * (left_out == 1)} the same as one of test {'is' if left_out == 1 else 'are'} left out"
        f"{f', {moved} moved from val to train' if moved else ''}."
    )


def _add_sizes(page: Page, survey: "Survey") -> None:
    page.section("Sizes and polyps")
    shares = np.array([row["polyp_share"] for row in survey.traits])
    sizes = Counter(map(tuple, survey.sizes.tolist()))
    common = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sizes.most_common(5))
    page.text(f"{_count(len(sizes), 'size')} in pixels; the most frequent: {common}.")
    of_images, of_polyps = (Figure(figsize=(6, 3.2), layout="constrained") for _ in range(2))
    axes = of_images.subplots()
    axes.scatter(survey.sizes[:, 1], survey.sizes[:, 0], s=10, alpha=0.4, color="#0b6bcb", linewidths=0)
    axes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    axes = of_polyps.subplots()
    axes.hist(
        shares * 100, bins=np.linspace(0, max(1.0, float(shares.max()) * 100), 31).tolist(), color="#2f9e57"
    )
    for name in ("medium", "large"):
        axes.axvline(STRATA["size"].bins[name] * 100, color="#59636e", linewidth=1, linestyle=":")
    axes.set(xlabel="polyp, % of the image's pixels", ylabel="images", xlim=(0, None))
    caption = (
        f"The polyps' share of each image: median {np.median(shares):.1%}, mean {shares.mean():.1%}; dotted lines part "
        "small, medium and large."
    )
    page.charts([(of_images, "Width and height of each image.", None), (of_polyps, caption, None)])
    page.table(
        [
            {
                "stratum": name,
                "bin": part,
                "values": STRATA[name].meanings[part],
                "images": f"{count} ({count / len(shares):.0%})",
            }
            for name, counts in _count_strata(survey).items()
            for part, count in counts.items()
        ]
    )
    page.text(
        "size: share of polyp pixels. number: connected components, specks of JPEG masks aside. shape: irregularity of "
        "the largest polyp's outline, 0 for a disc. The limits are the same for every data set.",
        "faint",
    )


def _add_pictures(page: Page, survey: "Survey") -> None:
    page.section("Contact sheet", "From the smallest polyp to the largest, outlined in green.")
    shares = [row["polyp_share"] for row in survey.traits]
    order = np.argsort(shares, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(PICTURES, len(order))).round().astype(int))
    page.gallery([_draw(survey, row, f"{shares[row]:.1%}") for row in order[places]])


def _add_duplicates(page: Page, survey: "Survey") -> None:
    page.section("Near-duplicates", _describe_duplicates(survey))
    page.text(
        "Linked where whole frames or fields of view correlate, or an encoder's features agree; links of links count "
        "too. None of these knows one polyp from two sides: keep patients together where you know them.",
        "faint",
    )
    straddling, subset = survey.straddling, survey.subset_of()
    groups = [*straddling, *(rows for rows in survey.duplicates if rows not in straddling)]
    if straddling:
        page.text("The groups that straddle the split show in one subset what is in another.", "warning")
    page.table(
        [
            {
                "group": str(number),
                "straddles": "yes" * (rows in straddling),
                "images": _name_members(survey, rows),
            }
            for number, rows in enumerate(groups, 1)
        ]
    )
    for number, rows in enumerate(groups[:GROUPS], 1):
        page.heading(f"Group {number}")
        reasons = [link.why for link in survey.links if link.first in rows]
        page.text(
            reasons[0] + (f"; and {_count(len(reasons) - 1, 'more link')}" if len(reasons) > 1 else ""),
            "faint",
        )
        page.gallery([_draw(survey, row, subset.get(survey.pairs[row].stem, "")) for row in rows[:MEMBERS]])


def _draw(survey: "Survey", row: int, caption: str) -> tuple[np.ndarray, str]:
    """A small picture of an image with its polyps outlined, and a caption that begins with its stem."""
    pair = survey.pairs[row]
    image, mask = read_image(pair.image), read_mask(pair.mask)
    size = max(1, round(image.shape[1] * HEIGHT / image.shape[0])), HEIGHT
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    outlined = contour(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), TRUTH)
    return outlined, f"{pair.stem}: {caption}" if caption else pair.stem


def _split_rows(survey: "Survey") -> list[dict[str, Any]]:
    """How many images of each bin of the polyps' size the suggested subsets have."""
    traits = {pair.stem: row for pair, row in zip(survey.pairs, survey.traits, strict=True)}
    counts = {
        name: Counter(find_strata(traits[stem])["size"] for stem in stems)
        for name, stems in survey.suggestion.items()
    }
    return [
        {"subset": name, "images": count.total()} | {part: count[part] for part in STRATA["size"].bins}
        for name, count in counts.items()
    ]
