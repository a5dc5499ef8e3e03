"""What a survey looks like: a summary in the terminal, and a page with charts and pictures."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from polyp.data.pairs import read_pair
from polyp.data.splits import SHIPPED
from polyp.data.traits import STRATA, strata_of
from polyp.errors import InputError
from polyp.page import Page
from polyp.pictures import TRUTH, contour

if TYPE_CHECKING:
    from polyp.survey.survey import Survey

HEIGHT = 288  # pixels of a picture on the page
SHOWN = 24  # pictures of the contact sheet
GROUPS = 40  # groups with pictures; all are in the table
MEMBERS = 8  # pictures of a group
TITLE = "Data: "
SAID = 10  # problems and groups that the terminal names


# ---- words


def _counted(subsets: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(stems)} {name}" for name, stems in subsets.items())


def _named(result: "Survey", rows: Sequence[int]) -> str:
    """The members of a group with their subsets."""
    subset = result.subset_of()
    return ", ".join(
        f"{(stem := result.pairs[row].stem)}" + (f" ({subset.get(stem, 'unused')})" if subset else "") for row in rows
    )


def _why(result: "Survey", rows: Sequence[int]) -> str:
    reasons = [link.why for link in result.links if link.first in rows]
    return reasons[0] + (f"; and {len(reasons) - 1} more links" if len(reasons) > 1 else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _findings(result: "Survey", split: str | None) -> str:
    groups = result.duplicates
    if not groups:
        return "No near-duplicates were found."
    text = f"{_plural(len(groups), 'group')} of near-duplicates with {sum(map(len, groups))} images"
    if result.split:
        count = len(result.straddling)
        text += f"; {count or 'none'} of them straddle{'s' * (count == 1)} the subsets of split {split}"
    return text + "."


def _advice(result: "Survey", split: str | None) -> str:
    if not result.suggestion:
        return "No split is suggested: there are too few images, or too few that differ."
    counts = _counted(result.suggestion)
    if split in (None, "random"):
        return f"Suggested: {counts}. Near-duplicates stay together, and each subset has small and large polyps alike."
    left = sum(map(len, result.split.values())) - sum(map(len, result.suggestion.values()))
    moved = len(set(result.suggestion["train"]) - set(result.split["train"]))
    same = ", so that numbers stay comparable" if split in SHIPPED else ""
    return (
        f"Suggested: {counts}. The test set is kept as it is{same}; {_plural(left, 'image')} of train and val that "
        f"show{'s' * (left == 1)} the same as one of test {'is' if left == 1 else 'are'} left out"
        f"{f', {moved} moved from val to train' if moved else ''}."
    )


def tell(result: "Survey", page: Path, suggestion: Path | None, split: str | None) -> None:
    """The summary in the terminal, and where the page is."""
    console = Console(highlight=False, soft_wrap=True)
    shares = np.array([row["polyp_share"] for row in result.traits])
    low, high = result.sizes.min(axis=0), result.sizes.max(axis=0)
    sizes = f"{low[1]}x{low[0]} to {high[1]}x{high[0]}"
    console.print(f"[bold]{escape(result.name)}[/]  {_plural(len(result.pairs), 'image')}, {sizes}")
    if result.split:
        console.print(f"  split      {escape(str(split))}: {_counted(result.split)}")
    console.print(
        f"  polyps     median {np.median(shares):.1%} of the pixels, {shares.min():.1%} to {shares.max():.1%}"
    )
    for name, counts in _strata(result).items():
        console.print(f"  {name:<10} " + ", ".join(f"{count} {bin}" for bin, count in counts.items()))
    colour = "yellow" if result.problems else "green"
    console.print(f"[{colour}]{_plural(len(result.problems), 'problem')}[/]")
    _some(console, result.problems)
    console.print(f"[{'yellow' if result.straddling else 'green'}]{_findings(result, split)}[/]")
    _some(console, [_named(result, rows) for rows in result.straddling])
    console.print(_advice(result, split))
    console.print(f"\n  the page   {escape(os.path.relpath(page))}")
    if suggestion:
        console.print(f"  the split  data.split={escape(os.path.relpath(suggestion))}")


def _some(console: Console, lines: Sequence[str]) -> None:
    for line in lines[:SAID]:
        console.print(f"  {escape(line)}")
    if len(lines) > SAID:
        console.print(f"  ... and {len(lines) - SAID} more: see the page")


def _strata(result: "Survey") -> dict[str, dict[str, int]]:
    """The count of each bin that occurs, by stratum."""
    bins = [strata_of(row) for row in result.traits]
    counted = {name: Counter(bin[name] for bin in bins if name in bin) for name in STRATA}
    return {name: {bin: counted[name][bin] for bin in STRATA[name].bins if counted[name][bin]} for name in STRATA}


# ---- the page


def describe(result: "Survey", suggestion: Path | None, split: str | None) -> Page:
    """The page of a survey."""
    shares = np.array([row["polyp_share"] for row in result.traits])
    lead = f"{_plural(len(result.pairs), 'image')} and as many masks; {_plural(len(result.problems), 'problem')}. "
    page = Page(f"{TITLE}{result.name}", lead + _findings(result, split))

    page.section("Problems", "" if result.problems else "None: every image has a readable mask of its size.")
    if result.problems:
        page.text(
            "These files are in nothing that follows, and training refuses to start before they are mended.", "warning"
        )
        page.table([{"problem": text} for text in result.problems])

    page.section("Sizes and polyps")
    sizes = Counter(map(tuple, result.sizes.tolist()))
    common = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(5))
    page.text(f"{_plural(len(sizes), 'size')} in pixels; the most frequent: {common}.")
    _add_charts(page, result.sizes, shares)
    page.table(
        [
            {
                "stratum": name,
                "bin": bin,
                "values": STRATA[name].meaning(bin),
                "images": f"{count} ({count / len(shares):.0%})",
            }
            for name, counts in _strata(result).items()
            for bin, count in counts.items()
        ]
    )
    page.text(
        "size: share of polyp pixels. number: connected components, specks of JPEG masks aside. shape: 0 is a disc. "
        "blur: log10 of the Laplacian's variance. highlights: overexposed share of the field of view. overlay: a box "
        "over a part of the picture. The limits are the same for every data set.",
        "faint",
    )

    page.section("Contact sheet", "From the smallest polyp to the largest, outlined in green.")
    order = np.argsort(shares, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
    page.gallery([(_outlined(result, row), f"{result.pairs[row].stem}: {shares[row]:.1%}") for row in order[places]])
    page.section("Strata", "Three images of each bin: the least, the middle and the most.")
    _add_strata(page, result)

    page.section("Near-duplicates", _findings(result, split))
    page.text(
        "Linked where whole frames or fields of view correlate, or an encoder's features agree; links of links count "
        "too. None of these knows one polyp from two sides: keep patients together where you know them.",
        "faint",
    )
    _add_groups(page, result)

    page.section("Split")
    if result.split:
        page.text(f"In use: {split}, {_counted(result.split)}.")
    page.text(_advice(result, split))
    if suggestion:
        page.text(f"It is in {suggestion.name}, beside this page: python train.py ... data.split={suggestion}")
        page.table(_split_rows(result))
    return page


def _add_charts(page: Page, sizes: np.ndarray, shares: np.ndarray) -> None:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(sizes[:, 1], sizes[:, 0], s=10, alpha=0.4, color="#0b6bcb", linewidths=0)
    axes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    page.chart(figure, "Width and height of each image.")
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(shares * 100, bins=np.linspace(0, max(1.0, float(shares.max()) * 100), 31).tolist(), color="#2f9e57")
    for limit in STRATA["size"].limits[1:]:
        axes.axvline(limit * 100, color="#59636e", linewidth=1, linestyle=":")
    axes.set(xlabel="polyp, % of the image's pixels", ylabel="images", xlim=(0, None))
    page.chart(
        figure,
        f"The polyps' share of each image: median {np.median(shares):.1%}, mean {shares.mean():.1%}; dotted lines part "
        "small, medium and large.",
    )


def _outlined(result: "Survey", row: int) -> np.ndarray:
    arrays = read_pair(result.pairs[row], allow_empty=True)
    if isinstance(arrays, list):  # it was readable a moment ago
        raise InputError(arrays[0])
    image, mask = arrays
    size = max(1, round(image.shape[1] * HEIGHT / image.shape[0])), HEIGHT
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return contour(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), TRUTH)


def _add_strata(page: Page, result: "Survey") -> None:
    bins = [strata_of(row) for row in result.traits]
    for name, stratum in STRATA.items():
        shown = []
        for bin in stratum.bins:
            rows = [row for row, found in enumerate(bins) if found.get(name) == bin]
            rows.sort(key=lambda row: result.traits[row][stratum.trait])
            for row in dict.fromkeys(rows[place] for place in (0, len(rows) // 2, -1) if rows):
                text = f"{bin}: {result.pairs[row].stem}, {stratum.trait} {result.traits[row][stratum.trait]:.3g}"
                shown.append((_outlined(result, row), text))
        page.heading(name)
        page.gallery(shown)


def _add_groups(page: Page, result: "Survey") -> None:
    straddling = result.straddling
    groups = [*straddling, *(rows for rows in result.duplicates if rows not in straddling)]
    if straddling:
        page.text("The groups that straddle the split show in one subset what is in another:", "warning")
        page.table([{"group": f"{n}", "images": _named(result, rows)} for n, rows in enumerate(straddling, 1)])
    subset = result.subset_of()
    for number, rows in enumerate(groups[:GROUPS], 1):
        page.heading(f"Group {number}" + (": straddles the split" if rows in straddling else ""))
        page.text(_why(result, rows), "faint")
        stems = [(row, result.pairs[row].stem) for row in rows[:MEMBERS]]
        page.gallery(
            [
                (_outlined(result, row), stem + (f" ({subset.get(stem, 'unused')})" if subset else ""))
                for row, stem in stems
            ]
        )
    if len(groups) > GROUPS or any(len(rows) > MEMBERS for rows in groups):
        page.heading("All groups")
        page.table([{"group": f"{n}", "images": _named(result, rows)} for n, rows in enumerate(groups, 1)])


def _split_rows(result: "Survey") -> list[dict[str, object]]:
    row_of = {pair.stem: row for row, pair in enumerate(result.pairs)}
    table = []
    for name, stems in result.suggestion.items():
        traits_of = [result.traits[row_of[stem]] for stem in stems]
        bins = Counter(strata_of(row)["size"] for row in traits_of)
        median = np.median([row["polyp_share"] for row in traits_of])
        sizes = {bin: bins[bin] for bin in STRATA["size"].bins if bins[bin]}
        table.append({"subset": name, "images": len(stems), "median polyp": f"{median:.1%}", **sizes})
    return table
