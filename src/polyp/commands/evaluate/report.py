"""What an evaluation looks like: a table in the terminal, and a page with charts and pictures."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from polyp.commands.evaluate.scoring import Image
from polyp.commands.evaluate.testsets import TestSet
from polyp.data.traits import STRATA, group_by_stratum
from polyp.inference.predictor import Predictor
from polyp.metrics.overlap import FAILURE
from polyp.report import pictures
from polyp.report.html import Page
from polyp.report.tables import Column, Table

REPORT = "report.html"
CASES = 6  # pictures of the worst, of the median and of the best images
FAILURES = 4  # pictures of failures in one stratum
NAMED = 5  # training images that a sentence names
HEIGHT = 220  # pixels of a picture

PAPER = ("dice", "iou", "dice_mean", "iou_mean", "wfm", "sm", "em_max", "mae", "false_alarms")
"""The numbers of a table that has a row for each data set."""


def print_metrics(metrics: Mapping[str, Any], folder: Path) -> None:
    """Print the numbers, and where the page is."""
    console = Console(highlight=False, soft_wrap=True)
    name, threshold = escape(metrics["images"]), metrics["threshold"]
    console.print(f"\n[bold]{name}[/], {metrics['n']} images, threshold {threshold:g}")
    _numbers(metrics).print()
    if metrics["sources"]:
        print()
        _sources(metrics).print()
    if metrics["risk_control"]:
        console.print(describe_control(metrics["risk_control"]))
    for note in _notes(metrics):
        console.print(f"[bold yellow]note[/] {escape(note)}")
    console.print(f"  the page   {escape(os.path.relpath(folder / REPORT))}")


def print_sets(evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Print several sets in one table, as papers have it: those numbers of which all sets have one."""
    values = [
        {name: _format(number["value"]) for name, number in metrics["numbers"].items()}
        for metrics in evaluations
    ]
    columns = ["", "images", *(name for name in PAPER if all(name in row for row in values))]
    rows = [
        {"": metrics["images"], "images": metrics["n"]} | row
        for metrics, row in zip(evaluations, values, strict=True)
    ]
    print()
    Table(rows, [Column(name) for name in columns]).print()


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
    page = Page(
        f"{folder.absolute().name} on {metrics['images']}",
        f"{', '.join(metrics['models'])}: {metrics['n']} images, threshold {metrics['threshold']:g}. "
        "For research, not for diagnosis.",
    )
    for note in _notes(metrics):
        page.text(note, "warning")
    page.section(
        "Numbers", "Intervals are 95 %, by bootstrap over the images; they do not cover other seeds."
    )
    page.table(_numbers(metrics))
    if metrics["risk_control"]:
        page.text(describe_control(metrics["risk_control"]))
    if metrics["sources"]:
        page.section("Sources")
        page.table(_sources(metrics))
    if not metrics["normal"]:
        page.section("Dice by image and stratum")
        page.charts([_plot_dice(images), _plot_reliability(metrics["reliability"])])
        page.table(_strata(metrics))
    _add_cases(page, metrics, images, test_set, predictors)
    page.section("Definitions")
    page.table([{"number": name, "definition": text} for name, text in metrics["definitions"].items()])
    page.write(file)


def _sources(metrics: Mapping[str, Any]) -> Table:
    """Dice and IoU of each data set or centre."""
    columns = [
        Column("source"),
        Column("n", "images"),
        Column("dice", "Dice", ".3f"),
        Column("dice_interval", "95 % interval", lambda row: _format_interval(row["dice_interval"])),
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
        f"{control['images']} validation images{result}). Dice is then {_format(here['dice']['value'])}, "
        f"precision {_format(here['precision']['value'])}. The checkpoint was chosen on the same validation "
        "images, so that this is slightly optimistic."
    )


def _notes(metrics: Mapping[str, Any]) -> list[str]:
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
        rest = "No image is left without them."
        if without := training["without"]:
            name = "false_alarms" if metrics["normal"] else "dice"
            value, interval = without["numbers"][name]["value"], without["numbers"][name]["interval"]
            rest = f"{_format(value)} ({_format_interval(interval)})" if interval else _format(value)
            rest = f"Without them: {name} {rest}, {without['n']} images."
        notes.append(
            f"{len(stems)} of the {metrics['n']} images are among those that {', '.join(models)} was trained "
            f"or validated on, identical or nearly so ({some}): the numbers are too good. {rest}"
        )
    return notes


def _numbers(metrics: Mapping[str, Any]) -> Table:
    columns = [
        Column("number"),
        Column("value", format=lambda row: _format(row["value"])),
        Column("interval", "95 % interval", format=lambda row: _format_interval(row["interval"])),
    ]
    return Table([{"number": name, **number} for name, number in metrics["numbers"].items()], columns)


def _strata(metrics: Mapping[str, Any]) -> Table:
    columns = [
        Column("stratum"),
        Column("values"),
        Column("n", "images"),
        Column("dice", "Dice", ".3f"),
        Column("dice_interval", "95 % interval", lambda row: _format_interval(row["dice_interval"])),
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


def _format(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _format_interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    digits = 3 if interval[1] < 10 else 1
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _plot_dice(images: Sequence[Image]) -> tuple[Figure, str, None]:
    dice = [image.dice for image in images]
    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(dice, bins=40, range=(0, 1), color="#0b6bcb")
    axes.set(xlabel="Dice", ylabel="images", xlim=(0, 1))
    return figure, f"Dice per image: half of the images have {np.median(dice):.3f} or more.", None


def _plot_reliability(reliability: Mapping[str, Any]) -> tuple[Figure, str, None]:
    pixels, probability, polyp = (np.array(reliability[name]) for name in ("pixels", "probability", "polyp"))
    filled = pixels > 0
    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#888", linewidth=1)
    axes.plot(probability[filled] / pixels[filled], polyp[filled] / pixels[filled], "o-", color="#0b6bcb")
    axes.set(xlabel="probability", ylabel="share of polyp", xlim=(0, 1), ylim=(0, 1))
    return figure, "Reliability: the share of polyp among the pixels of each probability.", None


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
        panel = pictures.panel(pixels, mask, predictors[stem].predict(pixels), metrics["threshold"])
        size = round(panel.shape[1] * HEIGHT / panel.shape[0]), HEIGHT
        caption = f"{stem}: Dice {image.dice:.3f}, polyp {image.traits['polyp_share']:.1%}"
        return cv2.resize(panel, size, interpolation=cv2.INTER_AREA), caption

    def add_gallery(heading: str, rows: Sequence[Mapping[str, Any]]) -> None:
        page.heading(heading)
        page.gallery([draw(row["stem"]) for row in rows])

    ranked = sorted((image.row for image in images), key=lambda row: row["dice"])
    middle = max(0, (len(ranked) - CASES) // 2)
    page.section(
        "Cases", "The image with the outlines of truth (green) and prediction (yellow); truth; prediction."
    )
    add_gallery("Worst", ranked[:CASES])
    add_gallery("Median", ranked[middle : middle + CASES])
    add_gallery("Best", ranked[::-1][:CASES])
    failures = [row for row in ranked if row["dice"] < FAILURE]
    if metrics["normal"] or not failures:
        return
    intro = f"{len(failures)} of {len(ranked)} images have a Dice below {FAILURE}, the worst first."
    page.section("Failures by stratum", intro)
    for name, parts in group_by_stratum(failures).items():
        for part, rows in parts.items():
            count = f"{len(rows)} of {metrics['strata'][name][part]['n']} images"
            add_gallery(f"{name}: {part}, {count}", rows[:FAILURES])
