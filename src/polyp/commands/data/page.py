"""The page of an inspection, with charts and pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.ticker import MaxNLocator

from polyp.commands.data.summary import (
    count_sources,
    count_subsets,
    describe_groups,
    describe_suggestion,
    name_members,
)
from polyp.commands.data.survey import Image, Survey
from polyp.data.masks import MaskCoding, sum_levels
from polyp.data.pairs import Check, Pair
from polyp.data.traits import STRATA, group_by_stratum
from polyp.errors import InputError, override_word
from polyp.report.charts import FAINT, SERIES, Chart, make_axes, styled
from polyp.report.html import Number, Page
from polyp.report.pictures import TRUTH, contour
from polyp.report.tables import count

TITLE = "Data: "
LEGEND = {"polyp": TRUTH}
HEIGHT = 360  # pixels of a picture on the page
MAX_PICTURES = 24  # on the contact sheet
MAX_GROUPS = 40  # groups of near-duplicates with pictures; all are in the table
MAX_MEMBERS = 8  # pictures of a group


def build_page(survey: Survey, split_file: Path | None) -> Page:
    """The page of a survey."""
    images = count(len(survey.images), "image")
    result = f"{images} with masks, and no problems"
    if survey.problems:
        result = f"{count(len(survey.problems), 'problem')}, and {images} without any"
    page = Page(f"{TITLE}{survey.name}", f"{result}. {describe_groups(survey)}")
    page.numbers(_list_numbers(survey))
    sources = count_sources(survey)
    if sources or survey.notes or survey.suspicions:
        page.section("Layout and masks", "How the files were understood.")
        page.text(f"Images of each source: {sources}." if sources else "")
        for note in survey.notes:
            page.text(f"{note}.")
        for suspicion in survey.suspicions:
            page.text(f"{suspicion[:1].upper()}{suspicion[1:]}.", "warning")
    page.section("Problems", "" if survey.problems else "None: every image has a readable mask of its size.")
    if survey.problems:
        page.text("These files are left out here, and training refuses to start with them.", "warning")
        page.table([{"problem": text} for text in survey.problems])
    _add_sizes(page, survey.images)
    page.section("Contact sheet", "From the smallest polyp to the largest.")
    ranked = sorted(survey.images, key=lambda image: image.traits["polyp_share"])
    indices = np.unique(np.linspace(0, len(ranked) - 1, min(MAX_PICTURES, len(ranked))).round().astype(int))
    page.gallery([_draw(ranked[n], f"{ranked[n].traits['polyp_share']:.1%}") for n in indices], LEGEND)
    _add_groups(page, survey)
    page.section("Split")
    if survey.split:
        page.text(f"In use: {survey.split_name}, {count_subsets(survey.split)}.")
    page.text(describe_suggestion(survey))
    if split_file:
        override = override_word("data.split", split_file)
        page.text(f"It is in {split_file.name}, beside this page: train with {override}")
        page.table(_list_subsets(survey))
    return page


def build_values_page(name: str, message: str, pairs: Sequence[Pair], checks: Sequence[Check]) -> Page:
    """A page for masks with ambiguous values: what to do (`message`), the values, and a picture of each."""
    page = Page(f"{TITLE}{name}", "It is not clear what is polyp in the masks.")
    page.text(message, "warning")
    shares = sum_levels([check.levels for check in checks if check.levels is not None])
    page.section("Values", "Of all masks; the pictures show where a mask has each of them.")
    page.table(
        [{"value": str(value), "share of the pixels": f"{share:.2%}"} for value, share in shares.items()]
    )
    pictures = []
    for value in shares:
        counts = [check.levels.counts.get(value, 0) if check.levels else 0 for check in checks]
        pair = pairs[int(np.argmax(counts))]
        try:
            image, mask = replace(pair, coding=MaskCoding((value,))).read()
        except InputError:
            continue
        if image.shape[:2] == mask.shape:
            pictures.append((_outline(image, mask), f"{value}: {pair.stem}"))
    page.gallery(pictures, {"has the value": TRUTH})
    return page


def _list_numbers(survey: Survey) -> list[Number]:
    images, problems, total = survey.images, len(survey.problems), len(survey.images)
    share = np.median([image.traits["polyp_share"] for image in images])
    multiple = sum(image.traits["polyps"] > 1 for image in images)
    duplicates = sum(len(group.images) for group in survey.groups)
    numbers = [
        Number("images", str(total), "with a mask of their size"),
        Number("problems", str(problems), "left out" if problems else ""),
        Number("near-duplicates", str(duplicates), f"images, in {count(len(survey.groups), 'group')}"),
    ]
    if survey.split:
        divided = str(len(survey.divided_groups))
        numbers.append(Number("divided groups", divided, f"by split {survey.split_name}"))
    return [
        *numbers,
        Number("polyp", f"{share:.1%}", "of the pixels of the median image"),
        Number("several polyps", f"{multiple / total:.0%}", f"{multiple} of {count(total, 'image')}"),
        Number("image sizes", str(len({image.size for image in images})), "width and height in pixels"),
    ]


def _add_sizes(page: Page, images: Sequence[Image]) -> None:
    page.section("Sizes and polyps")
    sizes = Counter(image.size for image in images)
    frequent = [f"{width}x{height} ({n})" for (height, width), n in sizes.most_common(5)]
    text = f"{len(sizes)} different sizes in pixels; the most frequent: {', '.join(frequent)}."
    page.text(f"All images have {frequent[0].split()[0]} pixels." if len(sizes) == 1 else text)
    page.charts([_plot_sizes(images), _plot_shares(images)])
    rows = [
        {"stratum": f"{name}: {part}", "values": f"{STRATA[name].trait} {STRATA[name].meanings[part]}"}
        | {"images": len(members), "share": f"{len(members) / len(images):.0%}"}
        for name, bins in group_by_stratum([image.traits for image in images]).items()
        for part, members in bins.items()
    ]
    page.table(rows)
    page.text(
        "polyp_share: of the pixels. polyps: connected components, specks of JPEG masks aside. irregularity: "
        "of the largest polyp's outline, 0 for a disc. The limits are the same for every data set.",
        "faint",
    )


@styled
def _plot_sizes(images: Sequence[Image]) -> Chart:
    figure, axes = make_axes("width, pixels", "height, pixels")
    heights, widths = np.array([image.size for image in images]).T
    axes.scatter(widths, heights, s=10, alpha=0.4, color=SERIES[0], linewidths=0)
    axes.set(xlim=(0, None), ylim=(0, None))
    return Chart("sizes", figure, "Width and height of each image.")


@styled
def _plot_shares(images: Sequence[Image]) -> Chart:
    shares = np.array([100 * image.traits["polyp_share"] for image in images])
    figure, axes = make_axes("polyp, % of the image's pixels", "images")
    axes.hist(shares, bins=30, range=(0, max(1.0, float(shares.max()))), color=SERIES[0])
    axes.set(xlim=(0, None))
    axes.margins(y=0.3)  # room for the labels
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for name, share in STRATA["size"].bins.items():
        if name == "none":
            continue
        axes.axvline(100 * share, color=FAINT, lw=1, ls=":")
        if 100 * share < axes.get_xlim()[1]:
            position = (100 * share, 1), (2, 0), ("data", "axes fraction"), "offset points"
            axes.annotate(name, *position, rotation=90, va="top", color=FAINT)
    median, mean = np.median(shares), shares.mean()
    caption = f"The polyps' share of each image: median {median:.1f} %, mean {mean:.1f} %."
    return Chart("polyp_shares", figure, caption)


def _add_groups(page: Page, survey: Survey) -> None:
    page.section("Near-duplicates", describe_groups(survey))
    page.text(
        "Linked where whole frames or fields of view correlate; links of links count too. This does not know "
        "one polyp from two sides: keep patients together where you know them (data.group).",
        "faint",
    )
    divided = survey.divided_groups
    if divided:
        page.text("Divided groups show in one subset what is in another.", "warning")
    groups = sorted(survey.groups, key=lambda group: group not in divided)
    rows = []
    for number, group in enumerate(groups, 1):
        members = name_members(survey, group.images)
        rows.append({"group": str(number), "divided": "yes" * (group in divided), "images": members})
    page.table(rows)
    for number, (images, reasons) in enumerate(groups[:MAX_GROUPS], 1):
        page.heading(f"Group {number}")
        suffix = f"; and {len(reasons) - 1} more links" if len(reasons) > 1 else ""
        page.text(f"{reasons[0]}{suffix}", "faint")
        page.gallery(
            [_draw(image, survey.subsets.get(image.pair.stem, "")) for image in images[:MAX_MEMBERS]], LEGEND
        )


def _draw(image: Image, caption: str) -> tuple[np.ndarray, str]:
    """A small picture of an image with its polyps outlined, and a caption that begins with its stem."""
    picture = _outline(*image.pair.read())
    return picture, f"{image.pair.stem}: {caption}" if caption else image.pair.stem


def _outline(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A small picture with the polyps of a mask outlined."""
    size = max(1, round(pixels.shape[1] * HEIGHT / pixels.shape[0])), HEIGHT
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return contour(picture, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) == 1, TRUTH)


def _list_subsets(survey: Survey) -> list[dict[str, Any]]:
    """The number of images of each size of polyps, for each suggested subset."""
    traits = {image.pair.stem: image.traits for image in survey.images}
    rows = []
    for name, stems in survey.suggestion.items():
        sizes = group_by_stratum([traits[stem] for stem in stems])["size"]
        counts = {part: len(sizes.get(part, ())) for part in STRATA["size"].bins}
        rows.append({"subset": name, "images": len(stems), **counts})
    return rows
