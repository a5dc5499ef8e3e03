"""The output of an evaluation in the terminal."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from polyp import terminal
from polyp.commands.evaluate.report import (
    REPORT_FILE,
    SUMMARY,
    build_number_table,
    build_source_table,
    describe_notes,
    describe_result,
    format_number,
)
from polyp.commands.evaluate.scoring import Image
from polyp.errors import shell_word
from polyp.report.tables import Column, Table
from polyp.runs.folder import RunFolder

# The numbers of the table with a row for each data set, and the meanings of their abbreviations.
PAPER = ("dice", "iou", "dice_mean", "iou_mean", "wfm", "sm", "em_max", "mae", "false_alarms")
PAPER_NAMES = {
    "wfm": "wfm: weighted F-measure",
    "sm": "sm: S-measure",
    "em_max": "em_max: max E-measure",
    "mae": "mae: mean absolute error of the probabilities",
}


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


def print_places(folder: Path, count: int, models: Sequence[str]) -> None:
    """Print where the files of an evaluation with `count` numbers are, and how to predict with its models."""
    relative = RunFolder(os.path.relpath(folder))
    names = [shell_word(model) for model in models]
    terminal.print_places(
        {
            "page": f"{relative.path / REPORT_FILE}",
            "numbers": f"{relative.metrics_file}    {count} with their definitions",
            "images": f"{relative.rows_file}",
            "use it": " --with ".join([f"polyp predict {names[0]} FOLDER_OR_VIDEO", *names[1:]]),
        }
    )
