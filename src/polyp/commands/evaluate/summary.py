"""The result of an evaluation in words, numbers and tables, as the terminal and the page have it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape

from polyp import terminal
from polyp.commands.evaluate.scoring import Image
from polyp.metrics.overlap import FAILURE
from polyp.report.tables import Column, Table, count

WORST = 3  # images with the lowest Dice that the result names
MAX_STEMS = 5  # training images that a note names

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
        build_interval_column("interval"),
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
        build_interval_column("dice_interval"),
        Column("iou", "IoU", ".3f"),
    ]
    return Table([{"source": name, **numbers} for name, numbers in metrics["sources"].items()], columns)


def build_interval_column(name: str) -> Column:
    """The column of an interval, from the values (low, high) at `name`."""
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
