"""What an evaluation says in the terminal: a few numbers with their meanings, and where the dice is low."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from polyp import terminal
from polyp.commands.evaluate.report import (
    REPORT,
    SUMMARY,
    build_source_table,
    describe_notes,
    format_interval,
    format_number,
)
from polyp.commands.evaluate.scoring import Image
from polyp.errors import shell_word
from polyp.metrics.overlap import FAILURE
from polyp.report.tables import Column, Table
from polyp.runs.folder import RunFolder

PAPER = ("dice", "iou", "dice_mean", "iou_mean", "wfm", "sm", "em_max", "mae", "false_alarms")
"""The numbers of a table that has a row for each data set."""

PAPER_NAMES = {
    "wfm": "wfm: weighted F-measure",
    "sm": "sm: S-measure",
    "em_max": "em_max: max E-measure",
    "mae": "mae: mean absolute error of the probabilities",
}
"""What the abbreviations stand for."""

WORST = 3  # images that are named


def print_metrics(metrics: Mapping[str, Any], images: Sequence[Image]) -> None:
    """Print the numbers of `SUMMARY`, and the kinds of images and the images with the lowest Dice.

    Args:
        metrics: the content of metrics.json.
        images: the scored images.
    """
    console = terminal.console()
    title = f"[bold]{escape(metrics['images'])}[/], {len(images)} images at original resolution"
    pixels = "" if metrics["normal"] else "; TP, FP, FN: correct, wrong and missed pixels"
    console.print(f"\n{title}, threshold {metrics['threshold']:g}{pixels}")
    numbers = {name: metrics["numbers"][name] for name in SUMMARY if name in metrics["numbers"]}
    columns = [
        Column("name", ""),
        Column("value", format=lambda row: format_number(row["value"])),
        Column("interval", "95 % interval", lambda row: format_interval(row["interval"])),
        Column("meaning"),
    ]
    rows = [{"name": name, **number, "meaning": SUMMARY[name][1]} for name, number in numbers.items()]
    Table(rows, columns).print(bold=lambda row: row["name"] == "dice")
    if metrics["sources"]:
        print()
        build_source_table(metrics).print()
    if not metrics["normal"]:
        console.print(escape(_describe_failures(metrics, images)))
    for note in describe_notes(metrics):
        console.print(f"[bold yellow]note[/] {escape(note)}")


def _describe_failures(metrics: Mapping[str, Any], images: Sequence[Image]) -> str:
    """In words: how often the Dice is low, for which bin of each stratum, and on which images."""
    ranked = sorted(images, key=lambda image: image.dice)
    failed = sum(image.dice < FAILURE for image in images)
    lowest = [
        f"{name} {part} {group['dice']:.3f} (n = {group['n']})"
        for name, parts in metrics["strata"].items()
        for part, group in [min(parts.items(), key=lambda item: item[1]["dice"])]
        if len(parts) > 1
    ]
    worst = [f"{image.pair.stem} {image.dice:.3f}" for image in ranked[:WORST]]
    return "\n".join(
        [
            f"Dice is below {FAILURE} on {failed} of {len(images)} images, lowest on {', '.join(worst)}",
            *[f"Lowest mean Dice by kind of polyp: {', '.join(lowest)}"] * bool(lowest),
        ]
    )


def print_sets(evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Print several sets in one table, as papers have it: those numbers of which all sets have one."""
    values = [
        {name: format_number(number["value"]) for name, number in metrics["numbers"].items()}
        for metrics in evaluations
    ]
    columns = ["", "images", *(name for name in PAPER if all(name in row for row in values))]
    rows = [
        {"": metrics["images"], "images": metrics["n"]} | row
        for metrics, row in zip(evaluations, values, strict=True)
    ]
    print()
    Table(rows, [Column(name) for name in columns]).print()
    if names := [text for name, text in PAPER_NAMES.items() if name in columns]:
        terminal.console().print("; ".join(names))


def print_places(folder: Path, count: int, models: Sequence[str]) -> None:
    """Print where an evaluation is, and what to do next.

    Args:
        folder: the evaluation's.
        count: how many numbers metrics.json has.
        models: the command's; several were averaged.
    """
    where = Path(os.path.relpath(folder))
    first, *others = map(shell_word, models)
    averaged = "".join(f" --with {other}" for other in others)
    terminal.print_places(
        {
            "page": f"{where / REPORT}",
            "numbers": f"{where / RunFolder(folder).metrics_file.name}    {count} with their definitions",
            "images": f"{where / RunFolder(folder).rows_file.name}",
            "use it": f"polyp predict {first} FOLDER_OR_VIDEO{averaged}",
        }
    )
