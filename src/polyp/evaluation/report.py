"""What an evaluation looks like: a table in the terminal, and a page with charts and pictures."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyp.data.traits import STRATA, strata_of
from polyp.evaluation.scoring import Image
from polyp.evaluation.testsets import TestSet
from polyp.inference.predictor import Predictor
from polyp.metrics.overlap import FAILURE
from polyp.report import pictures
from polyp.report.html import Page

REPORT = "report.html"

CASES = 6
"""Pictures of the worst, of the median and of the best images."""

EACH = 4
"""Pictures of failures in one stratum."""

NAMED = 5
"""Images that a sentence names."""

PAPER = ("dice", "iou", "dice_mean", "iou_mean", "wfm", "sm", "em_max", "mae", "false_alarms")
"""The numbers of a table that has a row for each data set."""

HEIGHT = 220  # pixels of a picture


def tell(metrics: Mapping[str, Any], folder: Path) -> None:
    """The numbers in the terminal, and where the page is."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n[bold]{escape(metrics['images'])}[/], {metrics['n']} images, threshold {metrics['threshold']:g}")
    table = Table(box=None, pad_edge=False)
    for name in ("", "value", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right")
    for name, number in metrics["numbers"].items():
        table.add_row(name, _value(number["value"]), _interval(number["interval"]))
    console.print(table)
    for line in _control(metrics):
        console.print(line)
    for warning in (*_training_images(metrics), *metrics["warnings"]):
        console.print(f"[bold yellow]note[/] {escape(warning)}")
    console.print(f"  the page   {escape(os.path.relpath(folder / REPORT))}")


def tell_together(answers: Sequence[Mapping[str, Any]]) -> None:
    """Several sets in one table, as papers have it: those numbers of which all sets have one."""
    shared = [name for name in PAPER if all(name in metrics["numbers"] for metrics in answers)]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("images", *shared):
        table.add_column(name, justify="right")
    for metrics in answers:
        values = [_value(metrics["numbers"][name]["value"]) for name in shared]
        table.add_row(escape(metrics["images"]), str(metrics["n"]), *values)
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    console.print(table)


def write_report(
    metrics: Mapping[str, Any], images: Sequence[Image], test_set: TestSet, predictor: Predictor, file: Path
) -> None:
    """The page.

    Args:
        metrics: what metrics.json holds.
        images: that have been scored.
        test_set: that they are of.
        predictor: what has predicted, and does so again for the pictures.
        file: where to write it.

    Raises:
        InputError: it cannot be written.
    """
    page = Page(
        f"{predictor.sources[0].home.absolute().name} on {metrics['images']}",
        f"{', '.join(metrics['models'])}: {metrics['n']} images, threshold {metrics['threshold']:g}. For research, not "
        "for diagnosis.",
    )
    for warning in (*_training_images(metrics), *metrics["warnings"]):
        page.text(warning, "warning")
    page.section(
        "Numbers", "Intervals are 95 %, by bootstrap over the images: they speak of other images, not of other seeds."
    )
    page.table(
        [
            {
                "number": name,
                "value": _value(number["value"]),
                "95 % interval": _interval(number["interval"]),
            }
            for name, number in metrics["numbers"].items()
        ]
    )
    for line in _control(metrics):
        page.text(line)
    if not metrics["normal"]:
        _charts(page, metrics, images)
    _cases(page, metrics, images, lambda image: _picture(image, test_set, predictor, metrics["threshold"]))
    page.section("Definitions")
    page.table([{"number": name, "definition": text} for name, text in metrics["definitions"].items()])
    page.write(file)


def _value(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    digits = 3 if interval[1] < 10 else 1
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _training_images(metrics: Mapping[str, Any]) -> list[str]:
    """In words: which of the images a model was trained or validated on, and how good it is on the others."""
    training = metrics["training_images"]
    if training is None:
        return []
    lines = [
        f"It could not be checked which of the images {model} was trained on: {reason}."
        for model, reason in training["unchecked"].items()
    ]
    if not training["found"]:
        return lines
    models = ", ".join(dict.fromkeys(image["model"] for image in training["images"]))
    stems = list(dict.fromkeys(image["stem"] for image in training["images"]))
    some = ", ".join(stems[:NAMED]) + (f" and {len(stems) - NAMED} more" if len(stems) > NAMED else "")
    line = (
        f"{training['found']} of the {metrics['n']} images are among those that {models} was trained or validated on, "
        f"identical or nearly so ({some}): the numbers are too good. "
    )
    if training["without"] is None:
        return [f"{line}No image is left without them.", *lines]
    name = "false_alarms" if metrics["normal"] else "dice"
    number, count = training["without"]["numbers"][name], training["without"]["n"]
    interval = f" ({_interval(number['interval'])})" if number["interval"] else ""
    return [f"{line}Without them: {name} {_value(number['value'])}{interval}, {count} images.", *lines]


def _control(metrics: Mapping[str, Any]) -> list[str]:
    """In words: the threshold that validation vouches for, and what it does here."""
    control = metrics["risk_control"]
    if control is None:
        return []
    here = control["here"]
    found = ""
    if "missed" in here:
        low, high = here["missed"]["interval"] or (0, 1)
        found = f", and on these images {100 * here['missed']['value']:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"
        if low > control["share"]:
            found += ": these are harder, and the promise does not hold for them"
        elif here["missed"]["value"] > control["share"]:
            found += ": more than that, which chance in the choice of images may explain"
    return [
        f"A pixel is polyp from {control['threshold']:.3f} on, and with confidence {control['confidence']:g} less than "
        f"{100 * control['share']:g} % of a polyp's pixels is missed, in the mean over images like the "
        f"{control['images']} validation images, on which it is {100 * control['missed']:.1f} %{found}. "
        f"Dice is then {_value(here['dice']['value'])}, precision {_value(here['precision']['value'])}. "
        "The validation images have also chosen the checkpoint, which makes the promise a little too good."
    ]


def _charts(page: Page, metrics: Mapping[str, Any], images: Sequence[Image]) -> None:
    page.section("Where it is good and where not")
    dice = [image.dice for image in images]
    figure = Figure((7, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(dice, bins=40, range=(0, 1), color="#0b6bcb")
    axes.set(xlabel="Dice", ylabel="images", xlim=(0, 1))
    page.chart(figure, f"Dice per image: half of the images have {np.median(dice):.3f} or more.")
    rows = [
        {
            "stratum": f"{name}: {part}",
            "images": of["n"],
            "Dice": _value(of["dice"]),
            "95 % interval": _interval(of["dice_interval"]),
            f"Dice below {FAILURE}": f"{100 * of['failures']:.0f} %",
            "values": f"{STRATA[name].trait} {STRATA[name].meaning(part)}",
        }
        for name, parts in metrics["strata"].items()
        for part, of in parts.items()
    ]
    page.chart(_forest(metrics), "Dice by stratum, with 95 % intervals; the line is the mean over all images.")
    page.table(rows)
    page.section("Calibration", "Whether a pixel's probability is what it says.")
    page.chart(_reliability(metrics), "Reliability: the share of polyp among the pixels of each probability.")


def _forest(metrics: Mapping[str, Any]) -> Figure:
    found = [
        (f"{name}: {part} ({of['n']})", of) for name, parts in metrics["strata"].items() for part, of in parts.items()
    ]
    figure = Figure((7, 0.6 + 0.26 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, (_, of) in enumerate(found):
        low, high = of["dice_interval"] or (of["dice"], of["dice"])
        axes.plot([low, high], [row, row], color="#0b6bcb", linewidth=1.5)
        axes.plot(of["dice"], row, "o", color="#0b6bcb", markersize=5)
    axes.axvline(metrics["numbers"]["dice"]["value"], color="#888", linewidth=1)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.invert_yaxis()
    axes.set(xlabel="Dice", xlim=(0, 1))
    return figure


def _reliability(metrics: Mapping[str, Any]) -> Figure:
    pixels, probability, polyp = (np.array(metrics["reliability"][name]) for name in ("pixels", "probability", "polyp"))
    there = pixels > 0
    figure = Figure((4.2, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#888", linewidth=1)
    axes.plot(probability[there] / pixels[there], polyp[there] / pixels[there], "o-", color="#0b6bcb", markersize=5)
    axes.set(xlabel="probability", ylabel="share of polyp", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure


def _cases(page: Page, metrics: Mapping[str, Any], images: Sequence[Image], picture: Callable[[Image], Any]) -> None:
    ranked = sorted(images, key=lambda image: image.dice)
    middle = max(0, (len(ranked) - CASES) // 2)
    groups = {"Worst": ranked[:CASES], "Median": ranked[middle:][:CASES], "Best": ranked[::-1][:CASES]}
    page.section("Cases", "The image with the outlines of truth (green) and prediction (yellow); truth; prediction.")
    for name, chosen in groups.items():
        page.heading(name)
        page.gallery([picture(image) for image in chosen])
    failures = [] if metrics["normal"] else [image for image in ranked if image.dice < FAILURE]
    if not failures:
        return
    told = f"{len(failures)} of {len(ranked)} images have a Dice below {FAILURE}, here the worst first."
    page.section("Failures by stratum", told)
    for name, parts in metrics["strata"].items():
        for part, of in parts.items():
            if here := [image for image in failures if strata_of(image.row).get(name) == part]:
                page.heading(f"{name}: {part}, {len(here)} of {of['n']} images")
                page.gallery([picture(image) for image in here[:EACH]])


def _picture(image: Image, test_set: TestSet, predictor: Predictor, threshold: float) -> tuple[np.ndarray, str]:
    pixels, mask = test_set.read(image.pair)
    probability = predictor.predict(pixels)
    panel = pictures.panel(pixels, mask, probability, threshold)
    width = round(panel.shape[1] * HEIGHT / panel.shape[0])
    told = f"{image.pair.stem}: Dice {image.dice:.3f}, polyp {100 * image.traits['polyp_share']:.1f} %"
    return cv2.resize(panel, (width, HEIGHT), interpolation=cv2.INTER_AREA), told
