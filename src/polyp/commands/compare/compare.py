"""`polyp compare`: finds runs, compares them, and writes a table, a page with pictures, and a model card."""

import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.markup import escape

from polyp import files, terminal
from polyp.commands.compare.comparison import Comparison, compare
from polyp.commands.compare.evaluations import build_evaluation_tables, find_evaluations
from polyp.commands.compare.options import Options
from polyp.commands.compare.page import PICTURES_FOLDER, build_table, write_page
from polyp.commands.compare.printing import print_comparison
from polyp.commands.compare.read_runs import RunRecord, find_runs
from polyp.errors import InputError, shell_word
from polyp.report.tables import Table

PAGE, TABLE, EVALUATIONS, CARD = "compare.html", "table.csv", "evaluations.csv", "MODEL_CARD.md"

PICTURES = ("loss.png", "dice*.png", "effect_*.png", "image_*.png")
"""The files of a comparison in pictures/, which may lie among others; before 0.8 the charts were some."""


def run(options: Options) -> Path:
    """Compare runs and write the result.

    Returns:
        The folder that was written.

    Raises:
        InputError: there is nothing to compare, or the folder is not empty.
    """
    card = options.card
    with terminal.status("reading the runs"):
        found = find_runs([Path(folder) for folder in [*options.folders, *([card] if card else [])]])
    finished = [run for run in found if run.metrics]
    comparison: Comparison | None = None
    if card and len(finished) == 1:
        subject = _find_subject(finished, card)
    else:
        with terminal.status("comparing the runs"):
            comparison = compare(found)
        subject = _find_subject(finished, card) if card else comparison.reference.first
    folder = _prepare_folder(options.out, options.overwrite)
    if comparison is not None:
        _write_comparison(comparison, folder, options)
    from polyp.commands.compare.card import write_card  # imports torch

    write_card(folder / CARD, subject, comparison)
    names = {"page": PAGE, "table": TABLE, "evaluations": EVALUATIONS, "model card": CARD}
    places = {
        name: os.path.relpath(folder / file)
        for name, file in names.items()
        if file == CARD or (comparison is not None and (folder / file).exists())
    }
    terminal.print_places(
        places | {"use it": f"polyp predict {shell_word(os.path.relpath(subject.folder))} FOLDER_OR_VIDEO"}
    )
    return folder


def _write_comparison(comparison: Comparison, folder: Path, options: Options) -> None:
    with terminal.status("comparing the runs"):  # imports torch to count operations
        table = build_table(comparison)
        evaluations, damaged = find_evaluations([Path(each) for each in options.folders])
        tables = build_evaluation_tables(comparison, evaluations)
    print_comparison(comparison, table, options.all_columns)
    for text in damaged:
        terminal.console().print(f"[bold yellow]left out[/] {escape(text)}")
    files.write_text(folder / TABLE, table.to_csv())
    replaces, started = (folder / PAGE).exists(), time.time()
    with terminal.status("drawing the page"):
        write_page(comparison, table, tables, folder / PAGE, options.root, options.pictures)
    rows = [{"images": images, **row} for images, each in tables.items() for row in each.rows]
    if rows:
        files.write_text(folder / EVALUATIONS, Table(rows).to_csv())
    elif replaces:
        (folder / EVALUATIONS).unlink(missing_ok=True)
    for picture in (file for name in PICTURES for file in (folder / PICTURES_FOLDER).glob(name)):
        # Only a former comparison's: in a folder without a page the pictures are somebody else's.
        if replaces and picture.stat().st_mtime < started:
            picture.unlink()


def _find_subject(finished: Sequence[RunRecord], card: str) -> RunRecord:
    """The run that the model card is for."""
    for run in finished:
        if run.folder.resolve() == Path(card).resolve():
            return run
    raise InputError(f"--card {card} is no finished run: give the folder of one")


def _prepare_folder(out: str | None, overwrite: bool) -> Path:
    folder = Path(out) if out else Path("outputs", "comparisons", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    files.check_writable(folder)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder} is not empty: give another --out, or --overwrite to replace a comparison")
    return folder
