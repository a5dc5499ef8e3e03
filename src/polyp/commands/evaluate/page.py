"""The page of an evaluation, with charts and pictures."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from polyp.commands.evaluate.corruptions import add_corruptions
from polyp.commands.evaluate.scoring import Image
from polyp.commands.evaluate.summary import (
    SUMMARY,
    build_interval_column,
    build_number_table,
    build_source_table,
    describe_control,
    describe_notes,
    describe_result,
    format_interval,
    format_number,
)
from polyp.commands.evaluate.testsets import TestSet
from polyp.data.traits import STRATA, group_by_stratum
from polyp.inference.predictor import Predictor
from polyp.metrics.overlap import FAILURE
from polyp.report import pictures
from polyp.report.charts import FAINT, SERIES, SIZE, Chart, label_rows, make_axes, styled
from polyp.report.html import Number, Page
from polyp.report.tables import Column, Table, count

PAGE_FILE = "report.html"
CASES = 6  # pictures of the worst, of the median and of the best images
MAX_FAILURES = 4  # pictures of failures in one stratum
HEIGHT = 320  # pixels of a picture


def write_page(
    metrics: Mapping[str, Any],
    images: Sequence[Image],
    test_set: TestSet,
    predictors: Mapping[str, Predictor],
    file: Path,
) -> None:
    """Write the page. The pictures are read again by the test set and predicted by the predictors, by stem.

    Raises:
        WriteError: the page cannot be written.
    """
    folder = next(iter(predictors.values())).sources[0].output_folder
    page = Page(f"{folder.absolute().name} on {metrics['images']}", describe_result(metrics, images))
    page.numbers(_list_numbers(metrics, images))
    models = f"{', '.join(metrics['models'])}, threshold {metrics['threshold']:g}"
    page.text(f"{models}. For research, not for diagnosis.", "faint")
    for note in describe_notes(metrics):
        page.text(note, "warning")
    if not metrics["normal"]:
        strata = _build_strata_table(metrics)
        page.section("Where it is good and bad")
        page.charts([_plot_strata(strata.rows, metrics), _plot_dice(images), _plot_reliability(metrics)])
        page.table(strata)
    if metrics["sources"]:
        page.section("Sources")
        page.table(build_source_table(metrics))
    _add_cases(page, metrics, images, test_set, predictors)
    if "corruptions" in metrics:
        add_corruptions(page, metrics["corruptions"], test_set, predictors, metrics["threshold"])
    if metrics["risk_control"]:
        page.section("A threshold that misses less", describe_control(metrics["risk_control"]))
    intro = "Intervals are 95 %, by bootstrap over the images; they do not cover other seeds."
    page.section("All numbers", intro)
    page.table(build_number_table(metrics, "number", "definition", metrics["definitions"]))
    page.write(file)


def _list_numbers(metrics: Mapping[str, Any], images: Sequence[Image]) -> list[Number]:
    numbers = []
    for name, (label, _) in SUMMARY.items():
        if number := metrics["numbers"].get(name):
            detail = f"95 %: {format_interval(number['interval'])}" if number["interval"] else ""
            value = format_number(number["value"])
            numbers.append(Number(label, value, detail, metrics["definitions"][name]))
    if not metrics["normal"]:
        failures = sum(image.is_failure for image in images)
        detail = f"{failures} of {count(len(images), 'image')}"
        meaning = f"Images with a Dice below {FAILURE}."
        numbers.append(Number("failures", f"{failures / len(images):.0%}", detail, meaning))
    return numbers


def _build_strata_table(metrics: Mapping[str, Any]) -> Table:
    columns = [
        Column("stratum"),
        Column("values"),
        Column("n", "images"),
        Column("dice", "Dice", ".3f"),
        build_interval_column("dice_interval"),
        Column("failures", f"Dice below {FAILURE}", ".0%"),
    ]
    rows = []
    for name, groups in metrics["strata"].items():
        for part, group in groups.items():
            values = f"{STRATA[name].trait} {STRATA[name].meanings[part]}"
            rows.append({"stratum": f"{name}: {part}", "values": values, **group})
    return Table(rows, columns)


@styled
def _plot_strata(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> Chart:
    figure, axes = make_axes("Dice", "", (SIZE[0], 0.6 + 0.24 * len(rows)))
    axes.axvline(metrics["numbers"]["dice"]["value"], color=FAINT, lw=1)
    for index, row in enumerate(rows):
        axes.plot(row["dice"], index, "o", color=SERIES[0], ms=5)
        if row["dice_interval"]:
            axes.plot(row["dice_interval"], [index, index], color=SERIES[0])
    names = [f"{row['stratum']} ({row['n']})" for row in rows]
    label_rows(axes, names, [f"{row['dice']:.2f}" for row in rows], SERIES[0])
    caption = "Mean Dice by kind of image (how many), with 95 % intervals. Line: all images."
    return Chart("strata", figure, caption)


@styled
def _plot_dice(images: Sequence[Image]) -> Chart:
    dice = [image.dice for image in images]
    figure, axes = make_axes("Dice", "images")
    axes.hist(dice, bins=40, range=(0, 1), color=SERIES[0])
    axes.set(xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return Chart("dice", figure, f"Dice of each image; the median is {np.median(dice):.3f}.")


@styled
def _plot_reliability(metrics: Mapping[str, Any]) -> Chart:
    reliability = metrics["reliability"]
    pixels, probability, polyp = (np.array(reliability[name]) for name in ("pixels", "probability", "polyp"))
    is_filled = pixels > 0
    x, y = probability[is_filled] / pixels[is_filled], polyp[is_filled] / pixels[is_filled]
    figure, axes = make_axes("predicted probability", "share of polyp")
    axes.plot([0, 1], [0, 1], color=FAINT, lw=1)
    axes.plot(x, y, "o-", color=SERIES[0], ms=4)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    caption = "The share of polyp among the pixels of each probability; below the line it is overconfident."
    return Chart("reliability", figure, caption)


def _add_cases(
    page: Page,
    metrics: Mapping[str, Any],
    images: Sequence[Image],
    test_set: TestSet,
    predictors: Mapping[str, Predictor],
) -> None:
    """Add the worst, median and best images, and failures by stratum."""
    rows = {image.pair.stem: image.row for image in images}
    pairs = {pair.stem: pair for pair in test_set.pairs}

    @cache
    def draw(stem: str) -> tuple[np.ndarray, str]:
        pixels, mask = test_set.read(pairs[stem])
        probability = predictors[stem].predict(pixels)
        picture = pictures.panel(pixels, mask, probability, metrics["threshold"], HEIGHT)
        row = rows[stem]
        if metrics["normal"]:
            return picture, f"{stem}: {count(int(row['false_positives']), 'false positive')}"
        return picture, f"{stem}: Dice {row['dice']:.3f}, polyp {row['polyp_share']:.1%}"

    def add_gallery(heading: str, cases: Sequence[Mapping[str, Any]]) -> None:
        if cases:
            page.heading(heading)
            page.gallery([draw(row["stem"]) for row in cases], pictures.LEGEND, "wide")

    ranked = sorted(rows.values(), key=lambda row: (row["dice"], -row["false_positives"], -row["mae"]))
    middle = ranked[CASES:-CASES]
    start = max(0, (len(middle) - CASES) // 2)
    page.section("Cases", "The image with the outlines of both; truth; prediction. A click enlarges it.")
    add_gallery("Worst", ranked[:CASES])
    add_gallery("Median", middle[start : start + CASES])
    add_gallery("Best", ranked[CASES:][-CASES:][::-1])
    failures = [row for row in ranked if row["dice"] < FAILURE]
    if metrics["normal"] or not failures:
        return
    share = f"{len(failures)} of {count(len(ranked), 'image')}"
    page.section("Failures by stratum", f"Dice is below {FAILURE} on {share}. The worst come first.")
    for name, groups in group_by_stratum(failures).items():
        for part, group in groups.items():
            size = count(metrics["strata"][name][part]["n"], "image")
            add_gallery(f"{name}: {part}, {len(group)} of {size}", group[:MAX_FAILURES])
