"""The page of an evaluation, with charts and pictures."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from polyp.commands.evaluate.corruptions import add_corruptions
from polyp.commands.evaluate.scoring import Image
from polyp.commands.evaluate.testsets import TestSet
from polyp.data.traits import STRATA, group_by_stratum
from polyp.inference.predictor import Predictor
from polyp.metrics.overlap import FAILURE
from polyp.report import pictures
from polyp.report.charts import FAINT, SERIES, SIZE, Chart, make_axes, styled
from polyp.report.html import Number, Page
from polyp.report.tables import Column, Table, count

REPORT = "report.html"
CASES = 6  # pictures of the worst, of the median and of the best images
FAILURES = 4  # pictures of failures in one stratum
NAMED = 5  # training images that a sentence names
HEIGHT = 320  # pixels of a picture

SUMMARY = {
    "dice": ("Dice", "2 TP / (2 TP + FP + FN) per image, then the mean"),
    "iou": ("IoU", "TP / (TP + FP + FN) per image, then the mean"),
    "precision": ("precision", "correct share of the predicted pixels"),
    "recall": ("recall", "found share of the polyps' pixels"),
    "polyp_recall": ("polyps found", f"found share of the polyps (IoU of {FAILURE} or more)"),
    "false_alarms": ("share of frames with a false alarm", "share of the images with a predicted polyp"),
    "false_positives_per_image": ("false positives per image", "predicted areas that match no polyp"),
}
"""The numbers that the page and the terminal begin with: the page's label, and what it is in a few words.
metrics.json and the page have the exact definitions.
"""


def write_report(
    metrics: Mapping[str, Any],
    images: Sequence[Image],
    test_set: TestSet,
    predictors: Mapping[str, Predictor],
    file: Path,
) -> None:
    """Write the page.

    Args:
        metrics: the content of metrics.json.
        images: the scored images.
        test_set: reads them again for the pictures.
        predictors: predict them again for the pictures, by stem.
        file: the page.

    Raises:
        InputError: it cannot be written.
    """
    folder = next(iter(predictors.values())).sources[0].output_folder
    page = Page(f"{folder.absolute().name} on {metrics['images']}", _describe_result(metrics, images))
    page.numbers(_large_numbers(metrics, images))
    models = f"{', '.join(metrics['models'])}, threshold {metrics['threshold']:g}"
    page.text(f"{models}. For research, not for diagnosis.", "faint")
    for note in describe_notes(metrics):
        page.text(note, "warning")
    if not metrics["normal"]:
        page.section("Where it is good and bad")
        page.charts([_plot_strata(metrics), _plot_dice(images), _plot_reliability(metrics["reliability"])])
        page.table(_strata(metrics))
    if metrics["sources"]:
        page.section("Sources")
        page.table(build_source_table(metrics))
    _add_cases(page, metrics, images, test_set, predictors)
    if "corruptions" in metrics:
        add_corruptions(page, metrics["corruptions"], test_set, predictors, metrics["threshold"])
    if metrics["risk_control"]:
        page.section("A threshold that misses less", describe_control(metrics["risk_control"]))
    page.section(
        "All numbers", "Intervals are 95 %, by bootstrap over the images; they do not cover other seeds."
    )
    numbers = _numbers(metrics)
    rows = [{**row, "definition": metrics["definitions"][row["number"]]} for row in numbers.rows]
    page.table(Table(rows, [*numbers.columns, Column("definition")]))
    page.write(file)


def _describe_result(metrics: Mapping[str, Any], images: Sequence[Image]) -> str:
    """The result in a few sentences."""
    where, numbers = count(metrics["n"], "image"), metrics["numbers"]
    if metrics["normal"]:
        alarms = round(numbers["false_alarms"]["value"] * metrics["n"])
        if metrics["n"] == 1:
            return f"There is {'a' if alarms else 'no'} false alarm on the only image, which has no polyp."
        return (
            f"{alarms or 'None'} of {where} without a polyp {'has' if alarms < 2 else 'have'} a false alarm."
        )
    dice = [image.dice for image in images]
    if len(images) == 1:
        return f"Dice is {dice[0]:.3f} on a single image, which says nothing about others."
    half = f"; half of them have {np.median(dice):.3f} or more" * (len(dice) > 3)
    text = f"Dice is {np.mean(dice):.3f} on {where}{half}."
    failures = sum(value < FAILURE for value in dice)
    few = {0: "No image has", 1: "One image has"}
    text += f" {few.get(failures, f'{failures} images have')} a Dice below {FAILURE}."
    bins = [item for parts in metrics["strata"].values() for item in parts.items()]
    if kinds := [(group["dice"], part, group["n"]) for part, group in bins if 1 < group["n"] < len(dice)]:
        value, part, n = min(kinds)
        kind = {"none": "no polyp", "one": "one polyp"}.get(part, f"{part} polyps")
        text += f" Dice is lowest on the {n} images with {kind}: {value:.3f}."
    return text


def _large_numbers(metrics: Mapping[str, Any], images: Sequence[Image]) -> list[Number]:
    numbers, definitions = metrics["numbers"], metrics["definitions"]
    large = []
    for name, (label, _) in SUMMARY.items():
        if name in numbers:
            interval = format_interval(numbers[name]["interval"])
            detail = f"95 %: {interval}" if interval else ""
            large.append(Number(label, format_number(numbers[name]["value"]), detail, definitions[name]))
    if not metrics["normal"]:
        failures = sum(image.dice < FAILURE for image in images)
        share, detail = f"{failures / len(images):.0%}", f"{failures} of {count(len(images), 'image')}"
        large.append(Number("failures", share, detail, f"Images with a Dice below {FAILURE}."))
    return large


def build_source_table(metrics: Mapping[str, Any]) -> Table:
    """Dice and IoU of each data set or centre."""
    columns = [
        Column("source"),
        Column("n", "images"),
        Column("dice", "Dice", ".3f"),
        Column("dice_interval", "95 % interval", lambda row: format_interval(row["dice_interval"])),
        Column("iou", "IoU", ".3f"),
    ]
    return Table([{"source": name, **numbers} for name, numbers in metrics["sources"].items()], columns)


def describe_control(control: Mapping[str, Any]) -> str:
    """In words: the threshold that was chosen on the validation images, and what it does on these images."""
    here, share, result = control["here"], control["share"], ""
    if "missed" in here:
        value, (low, high) = here["missed"]["value"], here["missed"]["interval"] or (0, 1)
        result = f", {value:.1%} here ({low:.1%} to {high:.1%})"
        if value > share:
            chance = "above the limit, perhaps by chance"
            result += f"; {'the limit does not hold for these images' if low > share else chance}"
    return (
        f"At threshold {control['threshold']:.3f} less than {share:.1%} of a polyp's pixels are missed on "
        f"average, with confidence {control['confidence']:g} ({control['missed']:.1%} on the "
        f"{control['images']} validation images{result}). Dice is then "
        f"{format_number(here['dice']['value'])}, precision {format_number(here['precision']['value'])}. The "
        "checkpoint was chosen on the same validation images, so that this is slightly optimistic."
    )


def describe_notes(metrics: Mapping[str, Any]) -> list[str]:
    """In words: which of the images a model was trained or validated on, and the warnings."""
    notes = list(metrics["warnings"])
    if not (training := metrics["training_images"]):
        return notes
    for model, reason in training["unchecked"].items():
        notes.append(f"It could not be checked which of the images {model} was trained on: {reason}.")
    if training["images"]:
        models, stems = (
            list(dict.fromkeys(row[key] for row in training["images"])) for key in ("model", "stem")
        )
        some = ", ".join(stems[:NAMED]) + (f" and {len(stems) - NAMED} more" if len(stems) > NAMED else "")
        part = f"{len(stems)} of the {metrics['n']} images" if metrics["n"] > 1 else "the image"
        rest = "No image is left without them."
        if without := training["without"]:
            name = "false_alarms" if metrics["normal"] else "dice"
            value, interval = without["numbers"][name]["value"], without["numbers"][name]["interval"]
            rest = (
                f"{format_number(value)} ({format_interval(interval)})" if interval else format_number(value)
            )
            rest = f"Without them: {name} {rest}, {count(without['n'], 'image')}."
        notes.append(
            f"Training or validation of {' and '.join(models)} had {part}, identical or nearly so "
            f"({some}): the numbers are too good. {rest}"
        )
    return notes


def _numbers(metrics: Mapping[str, Any]) -> Table:
    columns = [
        Column("number"),
        Column("value", format=lambda row: format_number(row["value"])),
        Column("interval", "95 % interval", format=lambda row: format_interval(row["interval"])),
    ]
    return Table([{"number": name, **number} for name, number in metrics["numbers"].items()], columns)


def _strata(metrics: Mapping[str, Any]) -> Table:
    columns = [
        Column("stratum"),
        Column("values"),
        Column("n", "images"),
        Column("dice", "Dice", ".3f"),
        Column("dice_interval", "95 % interval", lambda row: format_interval(row["dice_interval"])),
        Column("failures", f"Dice below {FAILURE}", ".0%"),
    ]
    rows = [
        {
            "stratum": f"{name}: {part}",
            "values": f"{STRATA[name].trait} {STRATA[name].meanings[part]}",
            **group,
        }
        for name, parts in metrics["strata"].items()
        for part, group in parts.items()
    ]
    return Table(rows, columns)


def format_number(value: float) -> str:
    """A number with three decimals, or one from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def format_interval(interval: Sequence[float] | None) -> str:
    """Both ends of an interval: `0.872 to 0.924`; blank without one."""
    if interval is None:
        return ""
    digits = 3 if interval[1] < 10 else 1
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


@styled
def _plot_strata(metrics: Mapping[str, Any]) -> Chart:
    rows = [
        (f"{name}: {part} ({group['n']})", group)
        for name, parts in metrics["strata"].items()
        for part, group in parts.items()
    ]
    figure, axes = make_axes("Dice", "", (SIZE[0], 0.6 + 0.24 * len(rows)))
    axes.axvline(metrics["numbers"]["dice"]["value"], color=FAINT, lw=1)
    for place, (_, group) in enumerate(rows):
        axes.plot(group["dice"], place, "o", color=SERIES[0], ms=5)
        if group["dice_interval"]:
            axes.plot(group["dice_interval"], [place, place], color=SERIES[0])
        axes.annotate(
            f"{group['dice']:.2f}", (1.02, place), xycoords=("axes fraction", "data"), va="center",
            color=SERIES[0],
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return Chart(
        "strata", figure, "Mean Dice by kind of image (how many), with 95 % intervals. Line: all images."
    )


@styled
def _plot_dice(images: Sequence[Image]) -> Chart:
    dice = [image.dice for image in images]
    figure, axes = make_axes("Dice", "images")
    axes.hist(dice, bins=40, range=(0, 1), color=SERIES[0])
    axes.set(xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return Chart("dice", figure, f"Dice of each image; the median is {np.median(dice):.3f}.")


@styled
def _plot_reliability(reliability: Mapping[str, Any]) -> Chart:
    pixels, probability, polyp = (np.array(reliability[name]) for name in ("pixels", "probability", "polyp"))
    filled = pixels > 0
    figure, axes = make_axes("predicted probability", "share of polyp")
    axes.plot([0, 1], [0, 1], color=FAINT, lw=1)
    axes.plot(
        probability[filled] / pixels[filled], polyp[filled] / pixels[filled], "o-", color=SERIES[0], ms=4
    )
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
    image_of = {image.pair.stem: image for image in images}

    @cache
    def draw(stem: str) -> tuple[np.ndarray, str]:
        image = image_of[stem]
        pixels, mask = test_set.read(image.pair)
        probability = predictors[stem].predict(pixels)
        panel = pictures.panel(pixels, mask, probability, metrics["threshold"], HEIGHT)
        caption = f"{stem}: Dice {image.dice:.3f}, polyp {image.traits['polyp_share']:.1%}"
        if metrics["normal"]:
            caption = f"{stem}: {count(int(image.row['false_positives']), 'false positive')}"
        return panel, caption

    def add_gallery(heading: str, rows: Sequence[Mapping[str, Any]]) -> None:
        page.heading(heading)
        page.gallery([draw(row["stem"]) for row in rows], pictures.LEGEND, "wide")

    scored = [image.row for image in images]
    ranked = sorted(scored, key=lambda row: (row["dice"], -row["false_positives"], -row["mae"]))
    others, best = ranked[CASES:-CASES], ranked[CASES:][-CASES:][::-1]
    middle = max(0, (len(others) - CASES) // 2)
    page.section("Cases", "The image with the outlines of both; truth; prediction. A click enlarges it.")
    add_gallery("Worst", ranked[:CASES])
    if others:
        add_gallery("Median", others[middle : middle + CASES])
    if best:
        add_gallery("Best", best)
    failures = [row for row in ranked if row["dice"] < FAILURE]
    if metrics["normal"] or not failures:
        return
    intro = (
        f"Dice is below {FAILURE} on {len(failures)} of {count(len(ranked), 'image')}. The worst come first."
    )
    page.section("Failures by stratum", intro)
    for name, parts in group_by_stratum(failures).items():
        for part, rows in parts.items():
            of_all = f"{len(rows)} of {count(metrics['strata'][name][part]['n'], 'image')}"
            add_gallery(f"{name}: {part}, {of_all}", rows[:FAILURES])
