"""The result of an evaluation in the terminal, and the page with charts and pictures."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from rich.markup import escape

from polyp import terminal
from polyp.commands.evaluate.corruptions import add_corruptions
from polyp.commands.evaluate.scoring import Image
from polyp.commands.evaluate.testsets import TestSet
from polyp.data.traits import STRATA, group_by_stratum
from polyp.errors import shell_word
from polyp.inference.predictor import Predictor
from polyp.metrics.overlap import FAILURE
from polyp.report import pictures
from polyp.report.charts import FAINT, SERIES, SIZE, Chart, label_rows, make_axes, styled
from polyp.report.html import Number, Page
from polyp.report.tables import Column, Table, count
from polyp.runs.folder import RunFolder

REPORT_FILE = "report.html"
WORST = 3  # images with the lowest Dice that the result names
CASES = 6  # pictures of the worst, of the median and of the best images
MAX_FAILURES = 4  # pictures of failures in one stratum
MAX_STEMS = 5  # training images that a note names
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
"""The numbers at the top of the page and in the terminal: the page's label, and a short meaning for the
terminal. metrics.json and the page have the exact definitions.
"""

# The numbers of the table with a row for each data set, and the meanings of their abbreviations.
PAPER = ("dice", "iou", "dice_mean", "iou_mean", "wfm", "sm", "em_max", "mae", "false_alarms")
PAPER_NAMES = {
    "wfm": "wfm: weighted F-measure",
    "sm": "sm: S-measure",
    "em_max": "em_max: max E-measure",
    "mae": "mae: mean absolute error of the probabilities",
}


# ---- Texts and tables of the page and of the terminal.


def describe_result(metrics: Mapping[str, Any], images: Sequence[Image]) -> str:
    """The result in a few sentences: the mean, how often the model fails, and on which images."""
    total = count(len(images), "image")
    if metrics["normal"]:
        alarms = round(metrics["numbers"]["false_alarms"]["value"] * len(images))
        verb = "has" if alarms < 2 else "have"
        return f"{alarms or 'None'} of {total} without a polyp {verb} a false alarm."
    dice = [image.dice for image in images]
    if len(images) == 1:
        return f"Dice is {dice[0]:.3f} on a single image, which says nothing about others."
    ranked = sorted(images, key=lambda image: image.dice)
    worst = ", ".join(f"{image.pair.stem} {image.dice:.3f}" for image in ranked[:WORST])
    text = f"Dice is {np.mean(dice):.3f} on {total}"
    if len(images) > 3:
        text += f"; half of them have {np.median(dice):.3f} or more"
    failures = sum(image.is_failure for image in images)
    text += f". It is below {FAILURE} on {failures or 'none'} of them, lowest on {worst}."
    lowest = []
    for name, groups in metrics["strata"].items():
        if len(groups) > 1:
            part, group = min(groups.items(), key=lambda item: item[1]["dice"])
            lowest.append(f"{name} {part} {group['dice']:.3f} (n = {group['n']})")
    return text + (f" Lowest mean Dice by kind of polyp: {', '.join(lowest)}." if lowest else "")


def describe_notes(metrics: Mapping[str, Any]) -> list[str]:
    """The warnings, and which of the images a model was trained or validated on."""
    notes = list(metrics["warnings"])
    training = metrics["training_images"]
    if not training:
        return notes
    for model, reason in training["unchecked"].items():
        notes.append(f"It could not be checked which of the images {model} was trained on: {reason}.")
    if training["images"]:
        models = " and ".join(dict.fromkeys(image["model"] for image in training["images"]))
        stems = list(dict.fromkeys(image["stem"] for image in training["images"]))
        names = ", ".join(stems[:MAX_STEMS])
        if len(stems) > MAX_STEMS:
            names += f" and {len(stems) - MAX_STEMS} more"
        share = f"{len(stems)} of the {metrics['n']} images" if metrics["n"] > 1 else "the image"
        without = "No image is left without them."
        if training["without"]:
            name = "false_alarms" if metrics["normal"] else "dice"
            number = training["without"]["numbers"][name]
            interval = f" ({format_interval(number['interval'])})" if number["interval"] else ""
            images = count(training["without"]["n"], "image")
            without = f"Without them: {name} {format_number(number['value'])}{interval}, {images}."
        notes.append(
            f"Training or validation of {models} had {share}, identical or nearly so ({names}): the numbers "
            f"are too good. {without}"
        )
    return notes


def describe_control(control: Mapping[str, Any]) -> str:
    """The threshold that was chosen on the validation images, and its result on these images."""
    numbers, limit, result = control["here"], control["share"], ""
    if "missed" in numbers:
        missed, (low, high) = numbers["missed"]["value"], numbers["missed"]["interval"] or (0, 1)
        result = f", {missed:.1%} here ({low:.1%} to {high:.1%})"
        if missed > limit:
            by_chance = "above the limit, perhaps by chance"
            result += f"; {'the limit does not hold for these images' if low > limit else by_chance}"
    return (
        f"At threshold {control['threshold']:.3f} less than {limit:.1%} of a polyp's pixels are missed on "
        f"average, with confidence {control['confidence']:g} ({control['missed']:.1%} on the "
        f"{control['images']} validation images{result}). Dice is then "
        f"{format_number(numbers['dice']['value'])}, precision "
        f"{format_number(numbers['precision']['value'])}. The checkpoint was chosen on the same validation "
        "images, so that this is slightly optimistic."
    )


def build_number_table(
    metrics: Mapping[str, Any], name_label: str, text_label: str, texts: Mapping[str, str]
) -> Table:
    """Numbers with their intervals, and the text of each; those without a text are left out."""
    columns = [
        Column("number", name_label),
        Column("value", format=lambda row: format_number(row["value"])),
        _interval_column("interval"),
        Column("text", text_label),
    ]
    numbers = metrics["numbers"]
    rows = [
        {"number": name, **numbers[name], "text": text} for name, text in texts.items() if name in numbers
    ]
    return Table(rows, columns)


def build_source_table(metrics: Mapping[str, Any]) -> Table:
    """Dice and IoU of each data set or centre."""
    columns = [
        Column("source"),
        Column("n", "images"),
        Column("dice", "Dice", ".3f"),
        _interval_column("dice_interval"),
        Column("iou", "IoU", ".3f"),
    ]
    return Table([{"source": name, **numbers} for name, numbers in metrics["sources"].items()], columns)


def _interval_column(name: str) -> Column:
    return Column(name, "95 % interval", lambda row: format_interval(row[name]))


def format_number(value: float) -> str:
    """A number with three decimals, or one from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def format_interval(interval: Sequence[float] | None) -> str:
    """Both ends of an interval: `0.872 to 0.924`; empty without an interval."""
    if interval is None:
        return ""
    digits = 3 if interval[1] < 10 else 1
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


# ---- The terminal.


def print_metrics(metrics: Mapping[str, Any], images: Sequence[Image]) -> None:
    """Print the numbers of `SUMMARY`, the result in words and the notes."""
    console = terminal.console()
    title = f"[bold]{escape(metrics['images'])}[/], {len(images)} images at original resolution"
    pixels = "" if metrics["normal"] else "; TP, FP, FN: correct, wrong and missed pixels"
    console.print(f"\n{title}, threshold {metrics['threshold']:g}{pixels}")
    meanings = {name: meaning for name, (_, meaning) in SUMMARY.items()}
    table = build_number_table(metrics, "", "meaning", meanings)
    table.print(bold=lambda row: row["number"] == "dice")
    if metrics["sources"]:
        print()
        build_source_table(metrics).print()
    console.print(escape(describe_result(metrics, images)))
    for note in describe_notes(metrics):
        console.print(f"[bold yellow]note[/] {escape(note)}")


def print_sets(evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of several test sets, with the numbers of `PAPER` that all of them have."""
    names = [name for name in PAPER if all(name in metrics["numbers"] for metrics in evaluations)]
    rows = []
    for metrics in evaluations:
        numbers = {name: format_number(metrics["numbers"][name]["value"]) for name in names}
        rows.append({"": metrics["images"], "images": metrics["n"], **numbers})
    print()
    Table(rows, [Column(name) for name in ("", "images", *names)]).print()
    if meanings := [meaning for name, meaning in PAPER_NAMES.items() if name in names]:
        terminal.console().print("; ".join(meanings))


def print_places(folder: Path, metrics: Mapping[str, Any], models: Sequence[str]) -> None:
    """Print where the files of an evaluation are, and the command that predicts with its models."""
    relative = RunFolder(os.path.relpath(folder))
    names = [shell_word(model) for model in models]
    terminal.print_places(
        {
            "page": f"{relative.path / REPORT_FILE}",
            "numbers": f"{relative.metrics_file}    {len(metrics['numbers'])} with their definitions",
            "images": f"{relative.rows_file}",
            "use it": " --with ".join([f"polyp predict {names[0]} FOLDER_OR_VIDEO", *names[1:]]),
        }
    )


# ---- The page.


def write_report(
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
        _interval_column("dice_interval"),
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
